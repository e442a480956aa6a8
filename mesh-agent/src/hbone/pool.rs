//! Tunnels of one pod on one worker, shared by its connections to one destination under the same expected names. A tunnel
//! that is being dialled is waited for by all who need it; more are dialled as streams need them.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use h2::Reason;
use http::{Request, StatusCode};
use mesh_api::Identity;
use mesh_listen::Refusals;
use rustls::ClientConfig;
use tokio::{net::TcpStream, sync::Notify, time::timeout};

use super::{
    Early, IDLE_TIMEOUT, RESENDS, RESPONSE_TIMEOUT, Stream, TunnelError,
    client::{Peer, Tunnel},
    early::Unanswered,
    inflow::Inflow,
};
use crate::{
    certificates::WorkloadCertificate,
    drain::{Drain, Phase},
};

/// Who shares a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The destination pod's address and port 15008.
    pub address: SocketAddr,
    /// Names of which the peer must prove one.
    pub identities: Arc<[Identity]>,
}

/// A connected socket and what to handshake with.
#[derive(Debug)]
pub struct Dialled {
    /// Connected to the peer's agent.
    pub socket: TcpStream,
    /// Shows the source's certificate, expects the key's identities.
    pub config: Arc<ClientConfig>,
    /// The certificate in `config`.
    pub certificate: Arc<WorkloadCertificate>,
}

/// Why no stream was opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// No tunnel; shared by all who waited for it.
    #[error("{0}")]
    Tunnel(Rc<TunnelError>),
    /// The peer answered something else than 200.
    #[error("the peer answered {0}")]
    Status(StatusCode),
    /// The stream was reset before an answer, or the tunnel was lost; no byte of the source was on its way.
    #[error("the tunnel was lost before an answer: {0}")]
    Lost(Rc<h2::Error>),
    /// That, or silence, with bytes of the source on their way.
    #[error("{0}, and bytes on their way may have been delivered")]
    MayBeDelivered(Rc<OpenError>),
    /// The source was reset before an answer.
    #[error("the source's end: {0}")]
    Source(Rc<io::Error>),
    /// No answer in time.
    #[error("the peer does not answer")]
    Timeout,
    /// Nor to PINGs, on several tunnels.
    #[error("the peer gives no sign of life")]
    Silent,
}

/// One pod's tunnels.
#[derive(Debug, Clone)]
pub struct Pool {
    entries: Rc<RefCell<HashMap<Key, Rc<Entry>>>>,
    drain: Drain,
    refusals: Arc<Refusals>,
}

#[derive(Debug, Default)]
struct Entry {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    dialling: RefCell<Option<Rc<Dialling>>>,
}

/// A dial that several may wait for.
#[derive(Debug, Default)]
struct Dialling {
    result: OnceCell<Result<(), Rc<TunnelError>>>,
    done: Notify,
}

/// One stream of a tunnel's allowance.
#[derive(Debug)]
pub(super) struct Slot(Rc<Tunnel>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Pool {
    /// Its tunnels are driven by tasks of `drain`; what their peers send beyond the limits is counted as `refusals`.
    pub fn new(drain: Drain, refusals: Arc<Refusals>) -> Self {
        Self { entries: Rc::default(), drain, refusals }
    }

    /// Opens a stream: on a tunnel of this key, or on one that `dial` makes. What the source says early is sent behind the
    /// request. A stream that the server has not looked at is sent again with it, to the same endpoint; so is one whose tunnel
    /// has fallen silent, on a new tunnel, if nothing was said.
    ///
    /// # Errors
    /// See [`OpenError`]; but for `MayBeDelivered`, nothing was delivered to the destination's application.
    pub async fn open<F>(
        &self,
        key: &Key,
        request: &Request<()>,
        early: &mut Early<'_>,
        dial: impl Fn() -> F,
    ) -> Result<(Stream, Rc<Peer>), OpenError>
    where
        F: Future<Output = Result<Dialled, TunnelError>> + 'static,
    {
        let mut resends = RESENDS;
        loop {
            let (slot, sender) = self.claim(key, &dial).await?;
            let Ok(mut sender) = sender.ready().await else {
                // Gone between claim and use: nothing was sent.
                slot.0.retire();
                continue;
            };
            let peer = slot.0.peer.clone();
            let (response, mut send) = match sender.send_request(request.clone(), false) {
                Ok(sent) => sent,
                Err(error) => {
                    try_again(&mut resends, Unanswered::Stream(error), false)?;
                    continue;
                }
            };
            let goes_ahead = slot.0.was_heard_lately();
            let answered = tokio::select! {
                biased;
                answered = timeout(RESPONSE_TIMEOUT, early.until_answered(response, &mut send, goes_ahead)) => {
                    answered.map_err(|_| OpenError::Timeout)?
                }
                () = slot.0.is_silent() => {
                    // Its streams live on, as on a wire.
                    slot.0.retire_silent();
                    Err(Unanswered::Silence)
                }
            };
            match answered {
                Ok(response) if response.status() == StatusCode::OK => {
                    return Ok((Stream::new(send, Inflow::new(response.into_body()), Some(slot)), peer));
                }
                Ok(response) => return Err(OpenError::Status(response.status())),
                Err(unanswered) => try_again(&mut resends, unanswered, early.is_sent())?,
            }
        }
    }

    /// Retires all tunnels.
    pub fn retire_all(&self) {
        for (_, entry) in self.entries.borrow_mut().drain() {
            entry.tunnels.borrow().iter().for_each(|tunnel| tunnel.retire());
        }
    }

    /// Tunnels that are open for new streams.
    pub fn tunnels(&self) -> usize {
        self.entries.borrow().values().map(|entry| entry.tunnels.borrow().len()).sum()
    }

    async fn claim<F>(
        &self,
        key: &Key,
        dial: &impl Fn() -> F,
    ) -> Result<(Slot, h2::client::SendRequest<Bytes>), OpenError>
    where
        F: Future<Output = Result<Dialled, TunnelError>> + 'static,
    {
        loop {
            let entry = self.entries.borrow_mut().entry(key.clone()).or_default().clone();
            if let Some(claimed) = entry.claim() {
                return Ok(claimed);
            }
            let dialling = entry.dialling.borrow().clone();
            let dialling = dialling.unwrap_or_else(|| self.start(key, &entry, dial()));
            loop {
                // Made before the look, so that an end between the two is not missed.
                let done = dialling.done.notified();
                match dialling.result.get() {
                    Some(Ok(())) => break,
                    Some(Err(error)) => return Err(OpenError::Tunnel(error.clone())),
                    None => done.await,
                }
            }
        }
    }

    /// Dials in a task of its own: it goes on when the connection that asked first goes away.
    fn start(
        &self,
        key: &Key,
        entry: &Rc<Entry>,
        dial: impl Future<Output = Result<Dialled, TunnelError>> + 'static,
    ) -> Rc<Dialling> {
        let dialling = Rc::new(Dialling::default());
        *entry.dialling.borrow_mut() = Some(dialling.clone());
        let (entries, key, entry, ours) = (self.entries.clone(), key.clone(), entry.clone(), dialling.clone());
        let (drain, refusals) = (self.drain.clone(), self.refusals.clone());
        self.drain.spawn_local(async move {
            // Whatever becomes of this task, nobody waits for ever.
            let finish = Finish { entry: entry.clone(), dialling: ours };
            let established = async {
                let Dialled { socket, config, certificate } = dial.await?;
                Tunnel::establish(socket, config, &certificate, refusals).await
            };
            let established = tokio::select! {
                established = established => established,
                () = drain.reached(Phase::Closing) => Err(TunnelError::Draining),
            };
            match established {
                Ok((tunnel, driver)) => {
                    entry.tunnels.borrow_mut().push(tunnel.clone());
                    // Withdrawn meanwhile: for those who wait, and for nobody else.
                    let is_current = entries.borrow().get(&key).is_some_and(|current| Rc::ptr_eq(current, &entry));
                    finish.with(Ok(()));
                    if !is_current {
                        tunnel.retire();
                    }
                    driver.run(tunnel.clone(), IDLE_TIMEOUT, &drain).await;
                    entry.tunnels.borrow_mut().retain(|other| !Rc::ptr_eq(other, &tunnel));
                }
                Err(error) => finish.with(Err(Rc::new(error))),
            }
            forget_empty(&entries, &key, &entry);
        });
        dialling
    }
}

fn forget_empty(entries: &RefCell<HashMap<Key, Rc<Entry>>>, key: &Key, entry: &Rc<Entry>) {
    let mut entries = entries.borrow_mut();
    let is_ours = entries.get(key).is_some_and(|current| Rc::ptr_eq(current, entry));
    if is_ours && entry.tunnels.borrow().is_empty() && entry.dialling.borrow().is_none() {
        entries.remove(key);
    }
}

impl Entry {
    fn claim(&self) -> Option<(Slot, h2::client::SendRequest<Bytes>)> {
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|tunnel| !tunnel.is_retired());
        tunnels
            .iter()
            .find_map(|tunnel| Some((tunnel.claim()?, tunnel)))
            .map(|(sender, tunnel)| (Slot(tunnel.clone()), sender))
    }
}

/// Tells all who wait, once; a task that is dropped says that the worker is going down.
struct Finish {
    entry: Rc<Entry>,
    dialling: Rc<Dialling>,
}

impl Finish {
    fn with(self, result: Result<(), Rc<TunnelError>>) {
        self.dialling.result.set(result).ok();
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.dialling.result.get_or_init(|| Err(Rc::new(TunnelError::Draining)));
        self.entry.dialling.borrow_mut().take();
        self.dialling.done.notify_waiters();
    }
}

/// Counts another try of a stream of which nothing was delivered, whoever answers it yet.
///
/// # Errors
/// Something may have been, or there were enough tries.
fn try_again(resends: &mut usize, unanswered: Unanswered, has_bytes: bool) -> Result<(), OpenError> {
    let (error, is_harmless) = match unanswered {
        Unanswered::Source(error) => return Err(OpenError::Source(Rc::new(error))),
        Unanswered::Silence => (OpenError::Silent, !has_bytes),
        Unanswered::Stream(error) => {
            let is_unseen = was_not_looked_at(&error);
            (OpenError::Lost(Rc::new(error)), is_unseen)
        }
    };
    match resends.checked_sub(1) {
        Some(left) if is_harmless => *resends = left,
        _ if has_bytes && !is_harmless => return Err(OpenError::MayBeDelivered(Rc::new(error))),
        _ => return Err(error),
    }
    Ok(())
}

/// REFUSED_STREAM, or a number above GOAWAY's last one. Source: RFC 9113, sections 6.8 and 8.7.
fn was_not_looked_at(error: &h2::Error) -> bool {
    let is_refused = error.reason() == Some(Reason::REFUSED_STREAM);
    let is_above_goaway = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    is_refused || is_above_goaway
}
