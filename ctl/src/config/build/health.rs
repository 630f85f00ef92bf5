//! `[clusters.ID.health_check]`.

use super::{
    super::read::{Section, Values},
    Builder,
};
use crate::state::{BackendAddress, HealthCheck, MAX_PROBE_HEADERS, ProbeHeader, ProbeMode, ProbeValueError};

/// Longest path, host and text to look for (bytes).
const LONGEST: usize = 2_048;
/// Keys that are about requests and their answers.
const OF_REQUESTS: [&str; 6] =
    ["uri", "expected_status", "accepted_statuses", "host", "body_contains", "headers"];

impl Builder<'_, '_> {
    /// How the backends of a cluster are probed; `None` if they are not.
    pub(super) fn health_check(&mut self, cluster: &Section) -> Option<HealthCheck> {
        let section = cluster.tables("health_check").first()?;
        section.warn_unhonoured(self.findings);
        let mut check = HealthCheck::default();
        check.read_keys(section, section, self.folder);
        check.tls = section.tables("tls").first().map(|tls| Box::new(self.tls_to_backends(tls)));
        check.headers = self.probe_headers(section, check.host.is_some());
        let mut unfit = |key: &str, reason: &str| self.findings.unfit(section.offset_of(key), reason);
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !check.uri.starts_with('/') || !is_visible(&check.uri) || check.uri.len() > LONGEST {
            unfit(
                "uri",
                "`uri` is a path that begins with `/`, of visible ASCII characters, of 2048 at most",
            );
        }
        let is_host = |host: &String| {
            host.len() <= 255 && is_visible(host) && !host.contains(['/', '@', '?', '#', '\\'])
        };
        if !check.host.as_ref().is_none_or(is_host) {
            unfit("host", "`host` is the name of a host, with or without a port");
        }
        if check.body_contains.as_ref().is_some_and(|text| text.len() > LONGEST) {
            unfit("body_contains", "`body_contains` has 2048 bytes at most");
        }
        if matches!(check.expected_status, 1..=99) {
            unfit("expected_status", "`expected_status` is 0, or a status from 100 to 599");
        }
        if check.expected_status != 0 && section.entry("accepted_statuses").is_some() {
            unfit(
                "accepted_statuses",
                "`accepted_statuses` beside `expected_status`: one of them says it all",
            );
        }
        let is_unix = |backend: &Section| {
            backend.says("unix_path")
                || matches!(backend.backend_address("address"), Some(BackendAddress::Unix(_)))
        };
        if check.port.is_some() && cluster.tables("backends").iter().any(is_unix) {
            unfit("port", "`port` beside a backend behind a unix socket, which has none");
        }
        if check.mode == ProbeMode::Tcp {
            for key in OF_REQUESTS.into_iter().filter(|key| section.entry(key).is_some()) {
                let text = format!("`{key}` has no effect with `mode = \"TCP\"`: no request is made");
                self.findings.warn(section.offset_of(key), text);
            }
        }
        Some(check)
    }

    /// The fields of a probe's request.
    fn probe_headers(&mut self, check: &Section, is_host_set: bool) -> Vec<ProbeHeader> {
        let sections = check.tables("headers");
        if sections.len() > MAX_PROBE_HEADERS {
            self.findings.unfit(check.offset_of("headers"), "`headers` has 32 fields at most");
        }
        let mut headers = Vec::with_capacity(sections.len());
        for section in sections {
            let (Some(name), Some(value_file)) = (section.text("name"), self.path_of(section, "value_file"))
            else {
                ProbeHeader::REQUIRED.iter().for_each(|key| self.missing(section, key.name));
                continue;
            };
            let header = ProbeHeader { name: name.to_owned(), value_file };
            if let Some(reason) = header.unfit_name(is_host_set) {
                self.findings.unfit(section.offset_of("name"), reason);
            }
            match header.read_value() {
                Ok(_) => {}
                Err(error @ ProbeValueError::Content { .. }) => {
                    self.findings.unfit(section.offset_of("value_file"), error.to_string());
                }
                Err(error) => {
                    let text = format!("no probe can be made as long as it is so: {error}");
                    self.warn_at(section, "value_file", text);
                }
            }
            headers.push(header);
        }
        headers
    }
}
