//! What a tunnel's task waits for beside the tunnel: age, silence, shutdown. Each is polled only when something has woken it,
//! not with every record that passes.

use std::pin::Pin;

use futures_util::stream::FuturesUnordered;

/// Waiting for one thing.
type Waiting<'a> = Pin<Box<dyn Future<Output = Chore> + 'a>>;

/// All that a tunnel's task waits for. A set even of few: it gives each future a waker of its own.
pub(super) type Chores<'a> = FuturesUnordered<Waiting<'a>>;

/// What follows from one that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chore {
    /// Nothing more.
    Done,
    /// GOAWAY: the streams that run may end.
    GoAway,
    /// The tunnel is given up.
    End,
}
