//! What the hooks keep about one socket, by descriptor: read on accepted sockets, written on the agent's own before they
//! connect. One system call each, about 1 to 2 µs.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use mesh_common::abi::{Endpoint, Meta, MetaKind};

use super::maps::socket_key;
use super::{Kernel, KernelError, sys};

/// What a redirected client dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The destination as the application named it.
    pub destination: SocketAddr,
    /// The endpoint that the hook chose behind a service address.
    pub endpoint: Option<SocketAddr>,
}

impl Kernel {
    /// What the client behind a socket accepted on 15001 dialled. None when it was not redirected: somebody dialled the
    /// listener by hand; reset it.
    ///
    /// Sockets accepted on 15006 and 15008 need no such call: their local address is the original destination.
    ///
    /// # Errors
    /// The descriptor is no socket.
    pub fn origin(&self, accepted: impl AsFd) -> Result<Option<Origin>, KernelError> {
        let meta = self
            .maps
            .meta
            .get(&socket_key(accepted.as_fd()))
            .map_err(|source| KernelError::system("reading META of a socket", source))?;
        let Some(meta) = meta.filter(|meta| meta.kind() == Some(MetaKind::PassiveDestination)) else { return Ok(None) };
        let origin = |destination| Origin { destination, endpoint: meta.endpoint().address() };
        Ok(meta.original().address().map(origin))
    }

    /// Marks an own outbound socket before it connects: the hooks let it pass.
    ///
    /// # Errors
    /// Socket storage is exhausted; do not connect then.
    pub fn mark_exempt(&self, socket: impl AsFd) -> Result<(), KernelError> {
        self.set_meta(socket, &Meta::new(MetaKind::Exempt, 0, Endpoint::NONE, Endpoint::NONE))
    }

    /// Marks a socket to an application, in the application's namespace, before it connects: the application's `accept` and
    /// `getpeername` answer `source`.
    ///
    /// # Errors
    /// Socket storage is exhausted; do not connect then.
    pub fn show_source(&self, socket: impl AsFd, source: SocketAddr) -> Result<(), KernelError> {
        self.set_meta(socket, &Meta::new(MetaKind::ActiveSource, 0, source.into(), Endpoint::NONE))
    }

    fn set_meta(&self, socket: impl AsFd, meta: &Meta) -> Result<(), KernelError> {
        self.maps
            .meta
            .set(&socket_key(socket.as_fd()), meta, sys::ANY)
            .map_err(|source| KernelError::system("writing META of a socket", source))
    }
}
