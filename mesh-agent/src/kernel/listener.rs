//! Listening sockets inside pods' namespaces, and LISTEN, in which `sk_lookup` finds them. Never accepts: that is the path's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use mesh_common::MAX_WORKERS;
use mesh_common::abi::{Ip16, ListenKey, Listener};
use socket2::{Domain, Protocol, Socket, Type};

use super::maps::socket_key;
use super::{Kernel, KernelError, PodId, namespace, sys};

/// Connections that may wait for `accept` per listener.
const BACKLOG: i32 = 4096;

/// Opens a listener of `kind` on a pod's address, in the pod's namespace, non-blocking. Each worker opens its own: they
/// share the port by SO_REUSEPORT, and only `sk_lookup` chooses between them.
///
/// Accepted sockets inherit SO_LINGER {1, 0}: they reset unless switched back for an orderly end.
///
/// # Errors
/// The address is not the pod's, the port is taken by a process of the pod, or descriptors ran out.
pub fn open(namespace: BorrowedFd<'_>, address: IpAddr, kind: Listener) -> Result<std::net::TcpListener, KernelError> {
    let address = SocketAddr::new(address, kind.port());
    let socket = namespace::run(namespace, || {
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
    })?;
    let failed = |source| KernelError::system(format!("listening on {address} in the pod's namespace"), source);
    let socket = socket.map_err(failed)?;
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(failed)?;
    }
    socket.set_reuse_port(true).map_err(failed)?;
    // A predecessor's connections in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true).map_err(failed)?;
    socket.set_linger(Some(std::time::Duration::ZERO)).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    Ok(socket.into())
}

impl Kernel {
    /// Lets `sk_lookup` steer to a worker's listener at one address of a pod. Insert it under every address of the pod of
    /// the listener's family. The entry vanishes with the socket's last descriptor.
    ///
    /// # Errors
    /// The socket does not listen, or LISTEN is full.
    pub fn insert_listener(
        &self,
        address: IpAddr,
        kind: Listener,
        worker: u32,
        socket: impl AsFd,
    ) -> Result<(), KernelError> {
        if worker >= self.workers {
            return Err(KernelError::Setting { name: "workers", reason: format!("there is no worker {worker}") });
        }
        let failed = |source| KernelError::system(format!("inserting the listener of {address}"), source);
        // Its accepted children inherit this: the hooks know them from the application's.
        self.maps.agent.set(&socket_key(socket.as_fd()), &1, sys::ANY).map_err(failed)?;
        let key = ListenKey::new(address.into(), kind, worker);
        let inserted = self.maps.listen.set(&key, &sys::number(socket.as_fd()), sys::ANY);
        inserted
            .map_err(|source| if sys::is_full(&source) { KernelError::Full { map: "LISTEN" } } else { failed(source) })
    }

    /// Takes all listeners of an enrolled pod out of LISTEN: its connections are refused from now on.
    ///
    /// # Errors
    /// The maps could not be read or written.
    pub fn remove_listeners(&self, pod: PodId) -> Result<(), KernelError> {
        let failed = |source| KernelError::system("removing listeners", source);
        for (address, entry) in self.maps.addresses.entries().map_err(failed)? {
            if entry.pod == pod.0 {
                self.remove_listeners_at(address).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn remove_listeners_at(&self, address: Ip16) -> io::Result<()> {
        for kind in Listener::ALL {
            for worker in 0..MAX_WORKERS {
                self.maps.listen.remove(&ListenKey::new(address, kind, worker))?;
            }
        }
        Ok(())
    }
}
