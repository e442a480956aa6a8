//! What is compiled from the View: POLICY, SERVICES (key: [`super::Endpoint`]) and BACKENDS (value: [`super::Endpoint`]).

use super::plain;

/// Key of POLICY. The exact port wins over port 0, which is any.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyKey {
    source: u32,
    destination: u32,
    port: [u8; 2],
    reserved: [u8; 2],
}

impl PolicyKey {
    /// From both classes and the destination port in host order, or 0 for any.
    #[inline(always)]
    pub const fn new(source: u32, destination: u32, port: u16) -> Self {
        Self { source, destination, port: port.to_be_bytes(), reserved: [0; 2] }
    }

    /// The source's class.
    pub const fn source(&self) -> u32 {
        self.source
    }

    /// The destination's class.
    pub const fn destination(&self) -> u32 {
        self.destination
    }

    /// The port in host order; 0 is any.
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// Value of POLICY. Absent means: ask the agent.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyValue {
    /// Allowed, and without the agent.
    Direct = 1,
    /// Refused.
    Deny = 2,
}

impl PolicyValue {
    /// From the map's value; none for a value that this code does not know, which means: ask the agent.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        match word {
            1 => Some(Self::Direct),
            2 => Some(Self::Deny),
            _ => None,
        }
    }
}

/// Flag of a [`ServiceEntry`]: always through the agent (affinity, L7, internalTrafficPolicy).
pub const SERVICE_AGENT_ONLY: u32 = 1;

/// Value of SERVICES.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// First half of the keys of its slots. Never re-used while its slots exist.
    pub id: u32,
    /// How many slots; 0: ask the agent.
    pub slots: u32,
    /// [`SERVICE_AGENT_ONLY`] or 0.
    pub flags: u32,
}

/// Key of BACKENDS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// [`ServiceEntry::id`].
    pub service: u32,
    /// 0 to [`ServiceEntry::slots`] - 1.
    pub slot: u32,
}

plain!(PolicyKey: 12, ServiceEntry: 12, BackendKey: 8);
