//! Why meshctl has no answer to print, in words that say what to do next, and the exit code for it.

use std::{io, time::Duration};

use tonic::{Code, Status};

/// The agent answered, and the answer is no.
pub const EXIT_NO: u8 = 1;
/// There is no answer. clap uses the same code for a wrong command line.
pub const EXIT_NO_ANSWER: u8 = 2;

/// What went wrong between the command line and the printed answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing has the name of the socket.
    #[error(
        "there is no socket {socket}: no agent runs on this node, or its --run-dir is another one\n  \
         next: start mesh-agent (mesh-agent check says what the node lacks), or name the socket: \
         meshctl --socket RUN_DIR/admin.sock ..."
    )]
    Absent { socket: String },
    /// The name is there, but is no socket.
    #[error(
        "{socket} is not a socket\n  \
         next: name the agent's socket: meshctl --socket RUN_DIR/admin.sock ..."
    )]
    NotASocket { socket: String },
    /// The socket is there, and nobody listens: what an agent that was killed leaves behind.
    #[error(
        "nobody answers on {socket}: the agent that made it has ended\n  \
         next: read its log and start mesh-agent again; until then new connections of enrolled pods are refused (direct ones \
         only after its --direct-max-age) and established direct ones live"
    )]
    Ended { socket: String },
    /// The socket is root's (mode 0600).
    #[error("permission denied on {socket}, which is for root only\n  next: run meshctl as root")]
    NotRoot { socket: String },
    /// Any other error of the connection.
    #[error("cannot connect to {socket}: {reason}")]
    Connect { socket: String, reason: String },
    /// Connected, but no answer in time.
    #[error(
        "the agent did not answer within {} s\n  \
         next: look at its log and at the load of the node, or wait longer with --timeout", after.as_secs()
    )]
    TooSlow { after: Duration },
    /// A control daemon did not say which agents it knows.
    #[error(
        "control at {address} did not answer: {reason}\n  \
         next: name its --debug-address (port 15013), in Kubernetes by kubectl port-forward, once for each replica"
    )]
    Control { address: String, reason: String },
    /// The agent answered with an error.
    #[error("{}", describe(.0))]
    Status(#[source] Box<Status>),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

impl Failure {
    /// 1 when the agent said no to what was asked, 2 when there is no answer.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Status(status) if is_refusal(status.code()) => EXIT_NO,
            _ => EXIT_NO_ANSWER,
        }
    }

    /// The reader of our output has gone (`meshctl sockets | head`): nothing to complain about.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// The codes with which the agent judges the request itself; all others speak of the agent or of the connection.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::OutOfRange
    )
}

fn describe(status: &Status) -> String {
    let message = crate::table::printable(status.message());
    match status.code() {
        Code::Unimplemented => "the agent does not know this request: it is older than this meshctl\n  \
                                next: compare `meshctl --version` with VERSION of `meshctl status`"
            .into(),
        code if is_refusal(code) => format!("refused: {message}"),
        Code::Unavailable => format!(
            "the agent went away or is not ready for this: {message}\n  next: meshctl status, or the agent's log"
        ),
        code => format!("the agent failed to answer ({code:?}): {message}\n  next: read the agent's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_request_is_1_and_everything_else_is_2() {
        let exit = |code: Code| Failure::from(Status::new(code, "x")).exit_code();

        assert_eq!(exit(Code::InvalidArgument), 1);
        assert_eq!(exit(Code::NotFound), 1);
        assert_eq!(exit(Code::FailedPrecondition), 1);
        assert_eq!(exit(Code::Unavailable), 2);
        assert_eq!(exit(Code::Unimplemented), 2);
        assert_eq!(exit(Code::Internal), 2);
        assert_eq!(Failure::TooSlow { after: Duration::from_secs(1) }.exit_code(), 2);
    }

    #[test]
    fn an_error_text_cannot_steer_the_terminal() {
        let text = Failure::from(Status::invalid_argument("uid: \u{1b}[2J is no uid")).to_string();

        assert_eq!(text, "refused: uid: \\u{1b}[2J is no uid");
    }
}
