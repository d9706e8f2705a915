// SPDX-License-Identifier: Apache-2.0
//! Joining the bus: connect, let the daemon export its objects, then request the name.

use crate::log_control::LogControl;
use crate::logging::LevelHandle;
use zbus::Connection;
use zbus::fdo::RequestNameFlags;

/// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS` overrides it, as for every D-Bus program) and exports
/// `org.freedesktop.LogControl1`.
///
/// # Errors
/// When the bus cannot be reached.
pub async fn connect(identifier: &'static str, level: LevelHandle) -> zbus::Result<Connection> {
    let connection = Connection::system().await?;
    let control = LogControl::new(identifier, level);
    connection.object_server().at("/org/freedesktop/LogControl1", control).await?;
    Ok(connection)
}

/// Requests the well-known name: the last step of a start, after every object is exported.
///
/// # Errors
/// When another process owns the name, or the bus policy forbids it.
pub async fn request_name(connection: &Connection, name: &'static str) -> zbus::Result<()> {
    connection.request_name_with_flags(name, RequestNameFlags::DO_NOT_QUEUE).await?;
    Ok(())
}

/// Escapes a text into one element of an object path, as systemd does: other bytes become `_` and two hex digits.
#[must_use]
pub fn path_element(text: &str) -> String {
    if text.is_empty() {
        return "_".to_owned();
    }
    let plain = |at: usize, byte: u8| byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
    let escape = |(at, byte): (usize, u8)| {
        if plain(at, byte) { char::from(byte).to_string() } else { format!("_{byte:02x}") }
    };
    text.bytes().enumerate().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::path_element;

    #[test]
    fn path_elements_are_escaped_like_systemd_does() {
        for (text, element) in [("hello", "hello"), ("a-1", "a_2d1"), ("1a", "_31a"), ("", "_"), ("_", "_5f")]
        {
            assert_eq!(path_element(text), element);
        }
    }
}
