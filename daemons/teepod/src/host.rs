// SPDX-License-Identifier: Apache-2.0
//! What else on this host uses context ids and ports.

use dstack_core::spec::{PortMapping, Protocol};
use dstack_sys::vsock::{Connecting, Guest};
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

/// Questions to the host; tests answer them themselves.
pub trait Host: Send + Sync + 'static {
    /// Whether a guest that is not ours has this context id.
    fn cid_in_use(&self, cid: u32) -> bool;
    /// Whether this port can be listened on now.
    ///
    /// # Errors
    /// `AddrInUse`, `PermissionDenied` for a privileged port, `AddrNotAvailable` for an address of another machine.
    fn port_free(&self, port: &PortMapping) -> io::Result<()>;
    /// Identifies this boot of the host.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn boot_id(&self) -> io::Result<String>;
    /// The address by which this host is reached from outside; none without a route.
    fn own_address(&self) -> Option<IpAddr> {
        None
    }
}

/// The real host.
#[derive(Debug, Clone, Copy)]
pub struct ThisHost;

/// Any port does: only the kernel's word on the context id is of interest.
const NO_PORT: u32 = u32::MAX - 1;
/// A context id that nobody has.
const NO_CID: u32 = u32::MAX - 0x1234;

/// Whether the kernel has somebody to deliver a packet to.
fn answers(cid: u32) -> bool {
    match Connecting::start(&Guest::Kernel(cid), NO_PORT) {
        // A packet is under way to somebody.
        Ok(_) => true,
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut
        ),
    }
}

impl Host for ThisHost {
    fn cid_in_use(&self, cid: u32) -> bool {
        // A host that is itself a guest delivers unknown ids to its own host: then nothing can be told.
        answers(cid) && !answers(NO_CID)
    }

    fn port_free(&self, port: &PortMapping) -> io::Result<()> {
        let address = (port.host_address, port.host_port);
        match port.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        }
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    /// The kernel chooses the address for a route to the outside; nothing is sent.
    fn own_address(&self) -> Option<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_not_free() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let port = PortMapping {
            protocol: Protocol::Tcp,
            host_address: address.ip(),
            host_port: address.port(),
            vm_port: 80,
        };
        assert_eq!(ThisHost.port_free(&port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        ThisHost.port_free(&port).unwrap();
        let foreign = PortMapping { host_address: [192, 0, 2, 1].into(), ..port };
        assert_eq!(ThisHost.port_free(&foreign).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn nobody_has_an_arbitrary_cid() {
        assert!(!ThisHost.cid_in_use(0x7fff_1234));
        assert!(!ThisHost.boot_id().unwrap().is_empty());
    }
}
