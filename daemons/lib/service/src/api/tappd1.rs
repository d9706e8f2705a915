// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.tappd1`: the guest agent, inside the guest.

use zbus::proxy;

/// Client side of `org.dstack.tappd1.Manager`.
#[proxy(
    interface = "org.dstack.tappd1.Manager",
    default_service = "org.dstack.tappd1",
    default_path = "/org/dstack/tappd1"
)]
pub trait Manager {
    /// Containers of the app: id, name, image, state.
    fn list_containers(&self) -> zbus::Result<Vec<(String, String, String, String)>>;

    /// The app's id, 40 hex digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn app_id(&self) -> zbus::Result<String>;
}
