//! Logs of the agent itself: set up once, filter changed while running. Connections have their own log (`telemetry`).

use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Why logs are not set up, or their filter is not changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter's text is wrong; the old one stays.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// tracing takes no level for "everything", which nobody means who mistypes one.
    #[error("log filter: {0:?} ends in '=' and names no level: error, warn, info, debug, trace or off")]
    NoLevel(String),
    /// A subscriber was there before.
    #[error("logs are set up already: {0}")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
    /// The subscriber has gone.
    #[error("log filter: {0}")]
    Gone(#[from] reload::Error),
}

/// Changes the filter.
#[derive(Debug, Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// Sends all logs to standard error.
    ///
    /// # Errors
    /// The filter is malformed, or it was done before.
    pub fn install(filter: &str, format: LogFormat) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(read(filter)?);
        let registry = tracing_subscriber::registry().with(filter);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        match format {
            LogFormat::Text => registry.with(lines.with_ansi(false)).try_init()?,
            LogFormat::Json => registry.with(lines.json()).try_init()?,
        }
        Ok(Self(handle))
    }

    /// The filter of now.
    ///
    /// # Errors
    /// The subscriber has gone.
    pub fn filter(&self) -> Result<String, LogError> {
        Ok(self.0.with_current(ToString::to_string)?)
    }

    /// Changes the filter from the next line on.
    ///
    /// # Errors
    /// It is malformed; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        Ok(self.0.reload(read(filter)?)?)
    }
}

fn read(filter: &str) -> Result<EnvFilter, LogError> {
    match filter.split(',').map(str::trim).find(|directive| directive.ends_with('=')) {
        Some(directive) => Err(LogError::NoLevel(directive.to_owned())),
        None => Ok(EnvFilter::builder().parse(filter)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_without_its_level_is_refused() {
        for good in ["info", "info,mesh_agent::path=debug", "mesh_agent[tunnel{peer=1}]=trace"] {
            assert!(read(good).is_ok(), "{good}");
        }
        for wrong in ["debugg=", "info, mesh_agent=", "info=debugg"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
