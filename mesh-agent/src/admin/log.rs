//! Logs of the agent itself: set up once, filter changed while running. Connections have their own log (`telemetry`).

use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Why logs are not set up, or their filter is not changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter's text is wrong; the old one stays.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
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
        let (filter, handle) = reload::Layer::new(EnvFilter::builder().parse(filter)?);
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
        Ok(self.0.reload(EnvFilter::builder().parse(filter)?)?)
    }
}
