// SPDX-License-Identifier: Apache-2.0
//! The D-Bus adapter: arguments in, permission, engine call, error out. It decides nothing.

pub mod api;
pub mod export;
pub mod introspect;
pub mod job;
pub mod manager;
pub mod options;
pub mod vm;

/// polkit actions; each has a text in `org.dstack.teepod1.policy`.
pub mod actions {
    /// Reading.
    pub const INSPECT_VMS: &str = "org.dstack.teepod1.inspect-vms";
    /// Creating, starting, stopping, resizing.
    pub const MANAGE_VMS: &str = "org.dstack.teepod1.manage-vms";
    /// Ending a VM without a shutdown.
    pub const KILL_VMS: &str = "org.dstack.teepod1.kill-vms";
    /// Removing a VM with its disk.
    pub const REMOVE_VMS: &str = "org.dstack.teepod1.remove-vms";
    /// Giving a VM another compose file.
    pub const UPGRADE_APPS: &str = "org.dstack.teepod1.upgrade-apps";
    /// The serial console.
    pub const OPEN_CONSOLE: &str = "org.dstack.teepod1.open-console";
    /// Importing images.
    pub const MANAGE_IMAGES: &str = "org.dstack.teepod1.manage-images";
    /// Removing images.
    pub const REMOVE_IMAGES: &str = "org.dstack.teepod1.remove-images";
    /// All of them.
    pub const ALL: [&str; 8] = [
        INSPECT_VMS,
        MANAGE_VMS,
        KILL_VMS,
        REMOVE_VMS,
        UPGRADE_APPS,
        OPEN_CONSOLE,
        MANAGE_IMAGES,
        REMOVE_IMAGES,
    ];
}
