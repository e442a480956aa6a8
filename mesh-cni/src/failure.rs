//! Why a call fails, with the code that the specification has for it. The text ends up in the events of the pod, so it says
//! what to look at.

/// Codes from here on are the plug-in's own. Source: CNI specification, section 5, "Error".
const OWN: u32 = 100;

/// Why a call fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The configuration is of a version that the plug-in or the verb does not know.
    #[error("{0}")]
    Version(String),
    /// A variable of the environment.
    #[error("{name}: {reason}")]
    Environment {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Standard input cannot be read.
    #[error("read the configuration: {0}")]
    Input(String),
    /// It is no JSON of the right shape.
    #[error("the configuration cannot be read: {0}")]
    Decode(String),
    /// It says something impossible.
    #[error("{0}")]
    Configuration(String),
    /// Nobody decides about the pod.
    #[error("mesh: {0}")]
    NoAnswer(String),
    /// The agent refuses.
    #[error("mesh: the agent of this node refuses the pod: {0}")]
    Refused(String),
}

impl Failure {
    /// As the specification numbers it.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment { .. } => 4,
            Self::Input(_) => 5,
            Self::Decode(_) => 6,
            Self::Configuration(_) => 7,
            Self::NoAnswer(_) => 11,
            Self::Refused(_) => OWN,
        }
    }
}
