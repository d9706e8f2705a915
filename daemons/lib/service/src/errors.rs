// SPDX-License-Identifier: Apache-2.0
//! D-Bus errors: one enum per daemon, `org.dstack.<daemon>1.<Name>`, each with a sentence that says what to do next.

/// Declares a daemon's error enum.
///
/// ```
/// dstack_service::bus_errors! {
///     /// Errors of the example.
///     pub enum ExampleError in "org.dstack.example1" {
///         /// There is no such thing.
///         NoSuchThing,
///     }
/// }
/// let error = ExampleError::NoSuchThing("no thing \"x\"; list them with `examplectl list`".into());
/// assert_eq!(zbus::DBusError::name(&error).as_str(), "org.dstack.example1.NoSuchThing");
/// ```
///
/// Besides the named ones there are always `Fdo` (standard errors such as `AccessDenied`) and `Bus` (no reply at all).
/// `From<zbus::Error>` turns a reply back into the same variant, so that clients match on it.
#[macro_export]
macro_rules! bus_errors {
    ($(#[$doc:meta])* $vis:vis enum $name:ident in $prefix:literal { $($(#[$vdoc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        $vis enum $name {
            $($(#[$vdoc])* $variant(String),)*
            /// A standard D-Bus error, e.g. `org.freedesktop.DBus.Error.AccessDenied`.
            Fdo($crate::errors::Fdo),
            /// The bus or the peer failed.
            Bus(zbus::Error),
        }

        impl $name {
            /// The error of a D-Bus error name and message, if it is one of this daemon's.
            fn from_reply(name: &str, message: &str) -> Option<Self> {
                match name.strip_prefix(concat!($prefix, "."))? {
                    $(stringify!($variant) => Some(Self::$variant(message.to_owned())),)*
                    _ => None,
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                match self {
                    $(Self::$variant(message) => f.write_str(message),)*
                    Self::Fdo(error) => write!(f, "{error}"),
                    Self::Bus(error) => write!(f, "{error}"),
                }
            }
        }

        impl ::std::error::Error for $name {}

        impl zbus::DBusError for $name {
            fn create_reply(&self, call: &zbus::message::Header<'_>) -> zbus::Result<zbus::Message> {
                let message = self.to_string();
                zbus::Message::error(call, zbus::DBusError::name(self)).build(&message)
            }

            fn name(&self) -> zbus::names::ErrorName<'_> {
                let name = match self {
                    $(Self::$variant(_) => concat!($prefix, ".", stringify!($variant)),)*
                    Self::Fdo(error) => error.name,
                    Self::Bus(_) => "org.freedesktop.DBus.Error.Failed",
                };
                zbus::names::ErrorName::from_static_str_unchecked(name)
            }

            fn description(&self) -> Option<&str> {
                match self {
                    $(Self::$variant(message) => Some(message),)*
                    Self::Fdo(error) => Some(&error.message),
                    Self::Bus(_) => None,
                }
            }
        }

        impl From<$crate::errors::Fdo> for $name {
            fn from(error: $crate::errors::Fdo) -> Self { Self::Fdo(error) }
        }

        impl From<zbus::Error> for $name {
            fn from(error: zbus::Error) -> Self {
                match &error {
                    zbus::Error::MethodError(name, message, _) => {
                        let text = message.as_deref().unwrap_or_default();
                        Self::from_reply(name.as_str(), text)
                            .or_else(|| $crate::errors::Fdo::from_reply(name.as_str(), text).map(Self::Fdo))
                            .unwrap_or(Self::Bus(error))
                    }
                    zbus::Error::FDO(fdo) => {
                        let text = zbus::DBusError::description(&**fdo).unwrap_or_default();
                        $crate::errors::Fdo::from_reply(zbus::DBusError::name(&**fdo).as_str(), text)
                            .map_or(Self::Bus(error.clone()), Self::Fdo)
                    }
                    _ => Self::Bus(error),
                }
            }
        }
    };
}

/// A standard D-Bus error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fdo {
    /// Full name of the error.
    pub name: &'static str,
    /// One sentence.
    pub message: String,
}

const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";
const INTERACTIVE: &str = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
const FAILED: &str = "org.freedesktop.DBus.Error.Failed";
const LIMITS: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
const SERVICE_UNKNOWN: &str = "org.freedesktop.DBus.Error.ServiceUnknown";

impl Fdo {
    /// The caller may not do this.
    pub fn access_denied(message: impl Into<String>) -> Self {
        Self { name: ACCESS_DENIED, message: message.into() }
    }

    /// The caller could do this after authenticating.
    pub fn interactive_required(message: impl Into<String>) -> Self {
        Self { name: INTERACTIVE, message: message.into() }
    }

    /// An argument is out of form.
    pub fn invalid_args(message: impl Into<String>) -> Self {
        Self { name: INVALID_ARGS, message: message.into() }
    }

    /// Something failed that the caller cannot mend.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { name: FAILED, message: message.into() }
    }

    /// A limit of the daemon is reached.
    pub fn limits_exceeded(message: impl Into<String>) -> Self {
        Self { name: LIMITS, message: message.into() }
    }

    /// The standard error of that name, if it is one that clients tell apart.
    #[must_use]
    pub fn from_reply(name: &str, message: &str) -> Option<Self> {
        [ACCESS_DENIED, INTERACTIVE, INVALID_ARGS, FAILED, LIMITS, SERVICE_UNKNOWN]
            .into_iter()
            .find(|known| *known == name)
            .map(|name| Self { name, message: message.to_owned() })
    }

    /// Whether the caller lacks permission.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.name == ACCESS_DENIED || self.name == INTERACTIVE
    }
}

impl std::fmt::Display for Fdo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fdo {}
