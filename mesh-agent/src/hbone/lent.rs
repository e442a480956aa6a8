//! Big read buffers, lent by the thread for as long as they hold bytes: an idle connection owns none. One size for all,
//! because a read of a busy socket fills what it is given, and 16 records sealed at once cost half of 16 sealed one by one.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of one buffer.
pub(super) const SIZE: usize = 256 << 10;

/// Buffers that a thread keeps for the next reads; the rest is given back to the allocator.
const KEPT: usize = 16;

/// Reads up to this are copied into memory of their own size, so that a few bytes never pin a big buffer.
const SMALL: usize = 16 << 10;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// One buffer; goes back to the thread that drops it.
#[derive(Debug)]
pub(super) struct Lent(Option<Box<[u8]>>);

impl Lent {
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(Some(free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())))
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            FREE.with_borrow_mut(|free| {
                if free.len() < KEPT {
                    free.push(buffer);
                }
            });
        }
    }
}

/// The read part of a buffer.
struct Filled(Lent, usize);

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.0.0.as_deref().unwrap_or_default().get(..self.1).unwrap_or_default()
    }
}

/// Reads what is there, up to 256 KiB, into a buffer that is lent only if there is something. Empty bytes are the end.
///
/// # Errors
/// Those of the reader.
pub fn read_chunk(reader: Pin<&mut impl AsyncRead>, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let mut lent = Lent::take();
    let mut buffer = ReadBuf::new(lent.bytes());
    ready!(reader.poll_read(context, &mut buffer))?;
    let length = buffer.filled().len();
    Poll::Ready(Ok(if length <= SMALL {
        Bytes::copy_from_slice(buffer.filled())
    } else {
        Bytes::from_owner(Filled(lent, length))
    }))
}
