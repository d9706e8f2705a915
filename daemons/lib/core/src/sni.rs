// SPDX-License-Identifier: Apache-2.0
//! Where a server name leads.
//!
//! Under the base domain a name says it all: `<id>[-[<port>]<suffix>]`, where `<id>` is an app or instance id (40 hex
//! digits), and the suffix is `s` (pass TLS through), `g` (end TLS here, HTTP/2 to the app) or nothing (end TLS here).
//! `<id>s` means `<id>-s`; that is unambiguous, since `s` is no hex digit. Any other name is a custom domain, whose
//! owner says by a TXT record where it leads.

/// Port of an app when the name has none and TLS ends here.
pub const HTTP_PORT: u16 = 80;
/// Port of an app when the name has none and TLS is passed through.
pub const HTTPS_PORT: u16 = 443;
/// Longest TXT value that is looked at, bytes.
pub const TXT_MAX: usize = 64;

/// An app or instance id as it stands in a name.
pub type Id = crate::ids::AppId;

/// What is done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// TLS ends here, bytes go to the app.
    Terminate,
    /// TLS ends here, HTTP/2 goes to the app.
    TerminateHttp2,
    /// TLS goes to the app as it is.
    Passthrough,
}

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Route {
    /// To an app or instance.
    App {
        /// App or instance id.
        id: Id,
        /// Port in the CVM.
        port: u16,
        /// What is done with TLS.
        mode: Mode,
    },
    /// To whatever the TXT record of this domain says, TLS passed through.
    Custom(String),
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The base domain itself, or a name with more than one label before it.
    #[error("{0:?} is not <id>[-<port>][s|g] under the base domain")]
    Form(String),
    /// The id is not 40 hex digits.
    #[error("{0:?} has no app or instance id of 40 hexadecimal digits")]
    Id(String),
    /// The port is not 1 to 65535.
    #[error("{0:?} has no port from 1 to 65535")]
    Port(String),
    /// A TXT value that is not `<id>:<port>`.
    #[error("TXT value {0:?} is not <id>:<port>")]
    Txt(String),
}

/// Routes a server name; upper and lower case are the same.
///
/// # Errors
/// [`RouteError`] for a name under the base domain that leads nowhere.
pub fn route(name: &str, base: &str) -> Result<Route, RouteError> {
    with(name, base, |label| {
        let default = if label.mode == Mode::Passthrough { HTTPS_PORT } else { HTTP_PORT };
        (label.port.unwrap_or(default), label.mode)
    })
}

/// Routes a server name where TLS is always passed through: `<id>` means `<id>s`, and `<id>-8443` `<id>-8443s`.
///
/// # Errors
/// [`RouteError`] for a name under the base domain that leads nowhere.
pub fn route_passthrough(name: &str, base: &str) -> Result<Route, RouteError> {
    with(name, base, |label| (label.port.unwrap_or(HTTPS_PORT), Mode::Passthrough))
}

/// Routes the host of a plain HTTP request: a bare `<id>` leads to the guest agent, others are as in [`route`], with
/// nothing done to the bytes.
///
/// # Errors
/// [`RouteError`] for a name under the base domain that leads nowhere.
pub fn route_http(name: &str, base: &str, agent_port: u16) -> Result<Route, RouteError> {
    with(name, base, |label| {
        let default = match label.mode {
            Mode::Terminate if label.bare => agent_port,
            Mode::Passthrough => HTTPS_PORT,
            Mode::Terminate | Mode::TerminateHttp2 => HTTP_PORT,
        };
        (label.port.unwrap_or(default), Mode::Passthrough)
    })
}

/// The label before the base domain.
struct Label {
    id: Id,
    port: Option<u16>,
    mode: Mode,
    /// An id and nothing else.
    bare: bool,
}

fn with(name: &str, base: &str, decide: impl Fn(&Label) -> (u16, Mode)) -> Result<Route, RouteError> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let base = base.to_ascii_lowercase();
    let Some(head) = name.strip_suffix(&base) else { return Ok(Route::Custom(name.to_owned())) };
    match head.strip_suffix('.') {
        Some(text) if !text.contains('.') => {
            let label = label(text)?;
            let (port, mode) = decide(&label);
            Ok(Route::App { id: label.id, port, mode })
        }
        None if !head.is_empty() => Ok(Route::Custom(name.to_owned())),
        _ => Err(RouteError::Form(name.to_owned())),
    }
}

fn label(label: &str) -> Result<Label, RouteError> {
    let (id, rest) = match label.split_once('-') {
        Some((id, rest)) if !rest.is_empty() => (id, rest),
        Some(_) => return Err(RouteError::Form(label.to_owned())),
        None => match label.strip_suffix('s') {
            Some(id) => (id, "s"),
            None => (label, ""),
        },
    };
    let (mode, digits) = match (rest.strip_suffix('s'), rest.strip_suffix('g')) {
        (Some(digits), _) => (Mode::Passthrough, digits),
        (_, Some(digits)) => (Mode::TerminateHttp2, digits),
        _ => (Mode::Terminate, rest),
    };
    let port = match digits {
        "" => None,
        digits => Some(port(digits).ok_or_else(|| RouteError::Port(label.to_owned()))?),
    };
    let id = hex_id(id).ok_or_else(|| RouteError::Id(label.to_owned()))?;
    Ok(Label { id, port, mode, bare: rest.is_empty() })
}

/// Exactly 40 hex digits, without `0x`.
fn hex_id(text: &str) -> Option<Id> {
    (text.len() == 40).then(|| text.parse().ok()).flatten()
}

/// Decimal digits without sign or leading zero, 1 to 65535.
fn port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    plain.then(|| digits.parse().ok()).flatten()
}

/// Reads the value of a `_tapp-address` or `_dstack-app-address` TXT record.
///
/// # Errors
/// [`RouteError::Txt`] when it is not `<id>:<port>`.
pub fn parse_txt(value: &str) -> Result<(Id, u16), RouteError> {
    let refused = || RouteError::Txt(value.chars().take(TXT_MAX).collect());
    if value.len() > TXT_MAX {
        return Err(refused());
    }
    let (id, digits) = value.trim().split_once(':').ok_or_else(refused)?;
    let id = hex_id(&id.to_ascii_lowercase()).ok_or_else(refused)?;
    Ok((id, port(digits).ok_or_else(refused)?))
}

#[cfg(test)]
#[path = "sni_tests.rs"]
mod tests;
