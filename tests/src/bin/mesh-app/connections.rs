//! Connections that a story keeps and drives step by step.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_tests::protocol::{Dial, End, Reply};
use socket2::SockRef;

use crate::client;

/// The kept connections of this process, by number; numbers begin at 1.
#[derive(Default)]
pub struct Connections {
    last: AtomicU32,
    open: Mutex<HashMap<u32, Arc<TcpStream>>>,
}

impl Connections {
    /// Makes a connection and keeps it.
    pub fn open(&self, dial: &Dial) -> Reply {
        let (stream, report) = client::connect(dial);
        let connection = stream.map_or(0, |stream| {
            let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
            self.open.lock().expect("no panic under this lock").insert(number, Arc::new(stream));
            number
        });
        Reply::Opened { connection, report }
    }

    fn find(&self, number: u32) -> Result<Arc<TcpStream>> {
        let open = self.open.lock().expect("no panic under this lock");
        open.get(&number).cloned().with_context(|| format!("no connection {number}"))
    }

    /// Writes all of it.
    pub fn write(&self, number: u32, text: &str, times: u32) -> Result<Reply> {
        let stream = self.find(number)?;
        for _ in 0..times {
            (&*stream).write_all(text.as_bytes())?;
        }
        Ok(Reply::Done)
    }

    /// Reads until enough, the end, or the read limit of the connection.
    pub fn read(&self, number: u32, wanted: usize) -> Result<Reply> {
        let stream = self.find(number)?;
        let mut received = Vec::new();
        let mut end = None;
        while received.len() < wanted && end.is_none() {
            let mut buffer = vec![0; (wanted - received.len()).min(1 << 20)];
            match (&*stream).read(&mut buffer) {
                Ok(0) => end = Some(End::Finished),
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(error) => end = Some(End::Failed(error.raw_os_error().unwrap_or_default())),
            }
        }
        let text = String::from_utf8_lossy(&received).into_owned();
        Ok(Reply::Read { text, bytes: received.len(), end })
    }

    /// FIN.
    pub fn names(&self, number: u32) -> Result<Reply> {
        let stream = self.find(number)?;
        Ok(Reply::Named { local: stream.local_addr()?, peer: stream.peer_addr()? })
    }

    pub fn finish(&self, number: u32) -> Result<Reply> {
        self.find(number)?.shutdown(Shutdown::Write)?;
        Ok(Reply::Done)
    }

    /// Forgets the connection, which closes it.
    pub fn close(&self, number: u32, reset: bool) -> Result<Reply> {
        let stream = self.find(number)?;
        if reset {
            SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
        }
        self.open.lock().expect("no panic under this lock").remove(&number);
        Ok(Reply::Done)
    }

    /// Reads and drops until the end.
    pub fn await_end(&self, number: u32, limit_ms: u64) -> Result<Reply> {
        let stream = self.find(number)?;
        let begun = Instant::now();
        let mut bytes = 0;
        let mut buffer = vec![0; 64 << 10];
        let end = loop {
            let left = Duration::from_millis(limit_ms).saturating_sub(begun.elapsed());
            if left.is_zero() {
                break None;
            }
            stream.set_read_timeout(Some(left))?;
            match (&*stream).read(&mut buffer) {
                Ok(0) => break Some(End::Finished),
                Ok(length) => bytes += length as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => break Some(End::Failed(error.raw_os_error().unwrap_or_default())),
            }
        };
        let after_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Reply::Ended { end, bytes, after_ms })
    }
}
