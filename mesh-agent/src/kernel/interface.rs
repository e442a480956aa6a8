//! The addresses of the interface that has a pod's own ones, and when they change (rtnetlink). Needs no thread: whoever
//! wants to know looks. Never decides which of them count.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::{KernelError, NetworkNamespace, pods};

/// Addresses that come and go, of both families. Source: Linux, include/uapi/linux/rtnetlink.h (RTMGRP_*).
const ADDRESSES: u32 = 0x10 | 0x100;

/// Tells whether addresses in a namespace have changed. Holds the namespace while it lives.
#[derive(Debug)]
pub struct AddressWatch(Socket);

impl AddressWatch {
    /// Watches from now on.
    ///
    /// # Errors
    /// The namespace cannot be entered, or has no rtnetlink.
    pub fn new(namespace: &NetworkNamespace) -> Result<Self, KernelError> {
        let opened = namespace.run(|| {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, ADDRESSES))?;
            Ok(socket)
        })?;
        opened.map(Self).map_err(|source: io::Error| KernelError::system("watching a pod's addresses", source))
    }

    /// Whether any has come or gone since the last time.
    pub fn has_changed(&self) -> bool {
        let mut has_changed = false;
        loop {
            // What it says does not matter, only that it is read.
            match self.0.recv(&mut [0_u8; 1].as_mut_slice(), 0) {
                Ok(_) => has_changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return has_changed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More was to be told than fits.
                Err(_) => return true,
            }
        }
    }
}

/// The other global addresses of the interfaces that have one of `own`.
///
/// # Errors
/// The namespace cannot be entered, or the kernel does not list its addresses.
pub fn siblings(namespace: &NetworkNamespace, own: &[IpAddr]) -> Result<BTreeSet<IpAddr>, KernelError> {
    let listed = namespace.run(addresses)?;
    let all = listed.map_err(|source| KernelError::system("listing a pod's addresses", source))?;
    let interfaces: BTreeSet<&CStr> =
        all.iter().filter(|(_, address)| own.contains(address)).map(|(interface, _)| interface.as_c_str()).collect();
    let of_theirs = all.iter().filter(|(interface, address)| {
        interfaces.contains(interface.as_c_str()) && !own.contains(address) && pods::is_global(*address)
    });
    Ok(of_theirs.map(|(_, address)| *address).collect())
}

/// Every address of the namespace that the thread is in, with its interface's name.
fn addresses() -> io::Result<Vec<(CString, IpAddr)>> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the pointer is to a live pointer, which is written.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: the list is libc's, unchanged, and freed below; each entry is followed by a valid one or by null.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the name is a C string, and the address null or of the size that its family has.
        let named = unsafe { (CStr::from_ptr(entry.ifa_name).to_owned(), address(entry.ifa_addr)) };
        if let (name, Some(address)) = named {
            found.push((name, address));
        }
        next = entry.ifa_next;
    }
    // SAFETY: it came from getifaddrs and nothing points into it any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// # Safety
/// Null, or a socket address of the size that its family has.
unsafe fn address(of: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as the caller promises.
    let family = unsafe { of.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: of this family it is a sockaddr_in.
            let v4 = unsafe { of.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: of this family it is a sockaddr_in6.
            let v6 = unsafe { of.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}
