//! The daemons' HTTP endpoints: readiness and metrics, read from inside their namespaces.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::namespace::Namespace;

/// A response: its status and its body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200 and so on.
    pub status: u16,
    /// As text.
    pub body: String,
}

/// Asks `address` for `path` from inside `namespace`.
///
/// # Errors
/// When there is no server or no HTTP.
pub fn ask(namespace: &Namespace, address: SocketAddr, path: &str) -> Result<Answer, String> {
    namespace.inside(|| exchange(address, path).map_err(|error| format!("http://{address}{path}: {error}")))
}

fn exchange(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(invalid)?;
    Ok(Answer { status, body: body.to_owned() })
}

/// One time series of a Prometheus page.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// A page of metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics(pub Vec<Series>);

impl Metrics {
    /// Reads the text format; lines that are not of it are an error of ours, hence a panic.
    ///
    /// # Panics
    /// On such a line.
    pub fn parse(page: &str) -> Self {
        let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| series(line).unwrap_or_else(|| panic!("not a metric: {line}"))).collect())
    }

    /// The series with this name and at least these labels.
    pub fn select<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Series> {
        self.0.iter().filter(move |series| {
            let has = |(label, value): &(&str, &str)| series.labels.get(*label).is_some_and(|found| found == value);
            series.name == name && labels.iter().all(has)
        })
    }

    /// Their sum.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|series| series.value).sum()
    }
}

/// `name{label="value",...} value`
fn series(line: &str) -> Option<Series> {
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = match head.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (head, ""),
    };
    let mut found = BTreeMap::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let end = end_of_text(quoted)?;
        found.insert(
            label.trim_start_matches(',').to_owned(),
            quoted[..end].replace("\\\"", "\"").replace("\\\\", "\\"),
        );
        rest = &quoted[end + 1..];
    }
    Some(Series { name: name.to_owned(), labels: found, value: value.parse().ok()? })
}

/// Where the first quotation mark is that no backslash protects.
fn end_of_text(text: &str) -> Option<usize> {
    let mut is_protected = false;
    text.char_indices().find_map(|(at, character)| {
        let ends = character == '"' && !is_protected;
        is_protected = character == '\\' && !is_protected;
        ends.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn series_are_found_by_name_and_labels() {
        let page = "# TYPE a counter\na{x=\"1\",y=\"say \\\"so\\\", ok\"} 2\na{x=\"2\"} 3\nb 4.5\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.sum("a", &[]), 5.0);
        assert_eq!(metrics.sum("a", &[("y", "say \"so\", ok")]), 2.0);
        assert_eq!(metrics.sum("b", &[]), 4.5);
        assert_eq!(metrics.sum("c", &[]), 0.0);
    }
}
