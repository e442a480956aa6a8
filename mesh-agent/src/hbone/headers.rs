//! The headers of a CONNECT: who says it is (for display only), from which socket, in which trace.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderMap, HeaderValue, Method, Request, Uri};

use crate::view::Workload;

/// What the source says about itself. Shown where the View does not know it; never judged by.
/// Source: W3C baggage; keys as ztunnel's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: String,
    /// `k8s.namespace.name`.
    pub namespace: String,
    /// `k8s.deployment.name` and its like.
    pub workload: String,
    /// `service.name`.
    pub canonical_name: String,
    /// `service.version`.
    pub canonical_revision: String,
}

impl Baggage {
    /// A workload's baggage as a header.
    pub fn header(workload: &Workload) -> Option<HeaderValue> {
        let kind = format!("k8s.{}.name", workload.workload_type);
        let fields = [
            ("k8s.cluster.name", &workload.cluster),
            ("k8s.namespace.name", &workload.namespace),
            (kind.as_str(), &workload.workload_name),
            ("service.name", &workload.canonical_name),
            ("service.version", &workload.canonical_revision),
            ("cloud.region", &workload.locality.region),
            ("cloud.availability_zone", &workload.locality.zone),
        ];
        let mut text = String::with_capacity(192);
        for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            encode(value, &mut text);
        }
        HeaderValue::try_from(text).ok().filter(|header| !header.is_empty())
    }

    /// Reads what is there; unknown keys and unreadable values are left out.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut baggage = Self::default();
        let texts = headers.get_all("baggage").into_iter().filter_map(|value| value.to_str().ok());
        for (key, value) in texts.flat_map(|text| text.split(',')).filter_map(|member| member.split_once('=')) {
            // Properties behind ';' mean nothing to us.
            let value = decode(value.split(';').next().unwrap_or_default().trim());
            match key.trim() {
                "k8s.cluster.name" => baggage.cluster = value,
                "k8s.namespace.name" => baggage.namespace = value,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.job.name" | "k8s.pod.name" => {
                    baggage.workload = value;
                }
                "service.name" => baggage.canonical_name = value,
                "service.version" => baggage.canonical_revision = value,
                _ => (),
            }
        }
        baggage
    }
}

/// Percent-encodes what baggage does not allow in a value.
fn encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        let is_plain = matches!(byte, 0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e);
        if is_plain {
            into.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            write!(into, "%{byte:02X}").ok();
        }
    }
}

fn decode(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        let digits = rest.as_slice().get(..2).filter(|_| byte == b'%').and_then(|hex| str::from_utf8(hex).ok());
        match digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest.nth(1);
            }
            None => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A W3C trace context of one connection. No span is exported for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
}

impl TraceParent {
    /// A new one. Source: W3C trace context, section 3.2: neither part is zero.
    pub fn random(random: &mut fastrand::Rng) -> Self {
        Self { trace: random.u128(1..), span: random.u64(1..) }
    }
}

impl std::fmt::Display for TraceParent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace, self.span)
    }
}

/// The request that opens a stream to `authority`.
pub(crate) fn connect_request(
    authority: SocketAddr,
    source: SocketAddr,
    host: Option<&str>,
    baggage: Option<HeaderValue>,
    trace: TraceParent,
) -> Result<Request<()>, http::Error> {
    let mut forwarded = format!("for=\"{source}\"");
    if let Some(host) = host {
        write!(forwarded, ";host={host}").ok();
    }
    let uri = Uri::builder().authority(authority.to_string()).build()?;
    let mut request = Request::builder().method(Method::CONNECT).uri(uri).version(http::Version::HTTP_2);
    request = request.header("forwarded", forwarded).header("traceparent", trace.to_string());
    if let Some(baggage) = baggage {
        request = request.header("baggage", baggage);
    }
    request.body(())
}

/// The source's socket as `forwarded` names it, if its address is the tunnel's: then the port is believed, else neither is.
/// Source: RFC 7239, section 4.
pub fn forwarded_for(headers: &HeaderMap, tunnel: IpAddr) -> Option<SocketAddr> {
    let text = headers.get("forwarded")?.to_str().ok()?;
    let first = text.split(',').next()?;
    let pairs = first.split(';').filter_map(|pair| pair.split_once('='));
    let (_, node) = pairs.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let source: SocketAddr = node.trim().trim_matches('"').parse().ok()?;
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    (source.ip() == tunnel.to_canonical()).then_some(source)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{Baggage, TraceParent, connect_request, forwarded_for};
    use crate::view::fixtures;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn baggage_read_is_baggage_written() {
        let mut pod = fixtures::pod("wéb, 1;=%", &["10.0.0.1"]);
        pod.service_account = "web".into();
        let view = fixtures::view([pod], [], []);
        let workload = view.workloads().next().unwrap();
        let header = Baggage::header(workload).unwrap();
        let read = Baggage::read(&HeaderMap::from_iter([("baggage".parse().unwrap(), header)]));
        assert_eq!((read.workload.as_str(), read.namespace.as_str()), ("wéb, 1;=%", "default"));
        assert_eq!((read.canonical_revision.as_str(), read.cluster.as_str()), ("v1", "Kubernetes"));
    }

    #[test]
    fn a_forwarded_source_counts_only_with_the_tunnels_address() {
        let tunnel = "10.0.0.1".parse().unwrap();
        let source = |text| forwarded_for(&headers("forwarded", text), tunnel).map(|source| source.to_string());
        assert_eq!(source("for=\"10.0.0.1:4000\""), Some("10.0.0.1:4000".into()));
        assert_eq!(source("by=x; FOR=\"10.0.0.1:4000\";host=a, for=\"10.0.0.9:1\""), Some("10.0.0.1:4000".into()));
        assert_eq!(source("for=\"[::ffff:10.0.0.1]:4000\""), Some("10.0.0.1:4000".into()));
        for text in ["for=\"10.0.0.2:4000\"", "for=10.0.0.1", "for=unknown", "", "for=", "for=\"10.0.0.1:70000\""] {
            assert_eq!(source(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_names_authority_source_and_service() {
        let trace = TraceParent { trace: 1, span: 2 };
        let request = connect_request(
            "[fd00::2]:8080".parse().unwrap(),
            "[fd00::1]:4000".parse().unwrap(),
            Some("echo.default.svc.cluster.local"),
            None,
            trace,
        )
        .unwrap();
        assert_eq!(request.uri().authority().unwrap().as_str(), "[fd00::2]:8080");
        assert_eq!(request.headers()["forwarded"], "for=\"[fd00::1]:4000\";host=echo.default.svc.cluster.local");
        let text = "00-00000000000000000000000000000001-0000000000000002-00";
        assert_eq!(request.headers()["traceparent"], text);
    }
}
