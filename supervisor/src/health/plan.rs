//! How the backends of a cluster are probed, made ready.

use std::sync::{Arc, OnceLock};

use kakehi_ctl::state::{BackendTls, Cluster, HealthCheck, ProbeHeader, ProbeMode};
use kakehi_engine::tls::{ClientTls, Context};

/// A field of a request: name and value.
pub(super) type Field = (String, Vec<u8>);

/// How the backends of a cluster are probed.
pub(super) struct Plan {
    pub(super) check: HealthCheck,
    /// A connection begins with a header of the PROXY protocol.
    pub(super) send_proxy: bool,
    tls: Option<Box<BackendTls>>,
    /// Made when it is needed first.
    compiled: OnceLock<Result<Arc<ClientTls>, String>>,
}

/// Two that are alike probe alike.
impl PartialEq for Plan {
    fn eq(&self, other: &Plan) -> bool {
        (&self.check, self.send_proxy, &self.tls) == (&other.check, other.send_proxy, &other.tls)
    }
}

impl Plan {
    /// That of `cluster`, if it is probed.
    pub(super) fn of(cluster: &Cluster) -> Option<Plan> {
        let check = HealthCheck::clone(cluster.health.as_deref()?);
        let of_requests = if check.mode == ProbeMode::Http { cluster.tls.clone() } else { None };
        let tls = check.tls.clone().or(of_requests);
        // Another port is another service.
        let send_proxy = cluster.send_proxy && check.port.is_none();
        Some(Plan { check, send_proxy, tls, compiled: OnceLock::new() })
    }

    /// What is needed for TLS, if that is spoken, or why it cannot be had.
    pub(super) fn tls(&self, context: Option<&Context>) -> Option<&Result<Arc<ClientTls>, String>> {
        let tls = self.tls.as_deref()?;
        Some(self.compiled.get_or_init(|| {
            let context = context.ok_or("certificates cannot be had from memory")?;
            ClientTls::compile(context, tls).map(Arc::new).map_err(|error| error.to_string())
        }))
    }

    /// The same, once it was asked for.
    pub(super) fn compiled_tls(&self) -> Option<&Result<Arc<ClientTls>, String>> {
        self.compiled.get()
    }

    /// Whether TLS is spoken.
    pub(super) fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The fields that are sent besides, or why they cannot be had.
    pub(super) async fn fields(&self) -> Result<Vec<Field>, String> {
        if self.check.headers.is_empty() || self.check.mode != ProbeMode::Http {
            return Ok(Vec::new());
        }
        let headers = self.check.headers.clone();
        // It waits for a disk.
        let read = tokio::task::spawn_blocking(move || {
            let field = |it: ProbeHeader| it.read_value().map(|value| (it.name, value));
            headers.into_iter().map(field).collect::<Result<_, _>>()
        });
        let read = read.await.map_err(|error| error.to_string())?;
        read.map_err(|error| format!("`health_check.headers`: {error}"))
    }

    /// What is sent to a backend whose name is `host` where neither the check nor `fields` say another. A field that is among
    /// them takes the place of kakehi's own.
    pub(super) fn request(&self, host: &str, fields: &[Field]) -> Vec<u8> {
        let host = self.check.host.as_deref().unwrap_or(host);
        let mut request = format!("GET {} HTTP/1.1\r\n", self.check.uri).into_bytes();
        let usual = [("Host", host), ("User-Agent", "kakehi-health-check"), ("Accept", "*/*")];
        let is_said = |usual: &str| fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(usual));
        let usual = usual.into_iter().filter(|(name, _)| !is_said(name));
        let usual = usual.map(|(name, value)| (name, value.as_bytes()));
        let all = usual.chain(fields.iter().map(|(name, value)| (&**name, &**value)));
        for (name, value) in all.chain([("Connection", &b"close"[..])]) {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                request.extend_from_slice(part);
            }
        }
        request.extend_from_slice(b"\r\n");
        request
    }
}
