//! How the backends of a cluster are probed, made ready.

use std::sync::{Arc, OnceLock};

use kakehi_ctl::state::{BackendTls, Cluster, HealthCheck, ProbeMode};
use kakehi_engine::tls::{ClientTls, Context};

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

    /// What is sent to a backend whose name is `host` where the check says no other.
    pub(super) fn request(&self, host: &str) -> Vec<u8> {
        let host = self.check.host.as_deref().unwrap_or(host);
        format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kakehi-health-check\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.check.uri
        )
        .into_bytes()
    }
}
