//! Questions to servers of the DNS, each with a deadline, and what came of them in words of our own.
//!
//! Promises: what a server sends is in no text that is shown; files are read on another thread.

use std::{borrow::Cow, net::SocketAddr, time::Duration};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, Record, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::time::{Instant, timeout_at};

/// How long one server has to answer one question; it is asked [`ATTEMPTS`] times more.
const TIMEOUT: Duration = Duration::from_millis(1_200);
const ATTEMPTS: usize = 2;
/// Servers that are asked at the same time.
const AT_A_TIME: usize = 2;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    /// There is no such name.
    NoName,
    /// The name has no such record.
    NoRecord,
    /// Nobody says.
    Failed(Cow<'static, str>),
}

/// Who asks.
pub(super) struct Resolver {
    dns: TokioResolver,
    /// Those of the system, where it is asked as the system does.
    hosts: Option<Hosts>,
}

impl Resolver {
    /// One that asks these servers; with none, as the system does. Reads files: for a thread that may wait.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn new(servers: &[SocketAddr]) -> Result<Resolver, String> {
        let (config, mut options) = match servers {
            [] => of_system(),
            servers => {
                let servers = servers.iter().map(|it| server(*it)).collect();
                (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
            }
        };
        options.timeout = options.timeout.min(TIMEOUT);
        options.attempts = options.attempts.min(ATTEMPTS);
        options.num_concurrent_reqs = AT_A_TIME;
        // The time for which an answer is good is ours to watch.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let dns = builder.build().map_err(|error| error.to_string())?;
        let hosts = servers.is_empty().then(|| Hosts::from_system().unwrap_or_default());
        Ok(Resolver { dns, hosts })
    }

    /// The records of this kind that a name has, also behind other names (CNAME).
    ///
    /// # Errors
    /// Why there are none.
    pub(super) async fn ask(
        &self,
        name: &str,
        kind: RecordType,
        deadline: Instant,
    ) -> Result<Vec<Record>, Lack> {
        let Ok(question) = Name::from_ascii(name) else {
            return Err(Lack::Failed("it cannot be a question of the DNS".into()));
        };
        if let Some(found) = self.in_hosts(&question, kind) {
            return found;
        }
        match timeout_at(deadline, self.dns.lookup(question, kind)).await {
            Ok(Ok(found)) => {
                let records = found.answers().iter().filter(|it| it.record_type() == kind);
                let records: Vec<Record> = records.cloned().collect();
                if records.is_empty() { Err(Lack::NoRecord) } else { Ok(records) }
            }
            Ok(Err(error)) => Err(lack(&error)),
            Err(_) => Err(Lack::Failed("no server answers".into())),
        }
    }

    /// What the system's file of hosts says; `None`: it does not have the name. Where it has the name, nobody else is asked.
    fn in_hosts(&self, name: &Name, kind: RecordType) -> Option<Result<Vec<Record>, Lack>> {
        let hosts = self.hosts.as_ref()?;
        let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let records = |kind| of(kind).map_or_else(Vec::new, |it| it.answers().to_vec());
        match (records(kind), records(RecordType::A), records(RecordType::AAAA)) {
            (found, _, _) if !found.is_empty() => Some(Ok(found)),
            (_, v4, v6) if v4.is_empty() && v6.is_empty() => None,
            _ => Some(Err(Lack::NoRecord)),
        }
    }
}

/// As the system is configured; as glibc, with a server on this host where it is not.
fn of_system() -> (ResolverConfig, ResolverOpts) {
    read_system_conf().unwrap_or_else(|_| {
        let here = server(([127, 0, 0, 1], 53).into());
        (ResolverConfig::from_parts(None, Vec::new(), vec![here]), ResolverOpts::default())
    })
}

fn server(address: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|it| it.port = address.port());
    NameServerConfig::new(address.ip(), true, connections)
}

fn lack(error: &NetError) -> Lack {
    if error.is_nx_domain() {
        return Lack::NoName;
    }
    Lack::Failed(match error {
        NetError::Dns(DnsError::NoRecordsFound(found)) => match found.response_code {
            ResponseCode::NoError => return Lack::NoRecord,
            code => of_code(code),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => of_code(*code),
        NetError::Timeout => "no server answers".into(),
        NetError::Io(error) => format!("no server can be asked: {}", error.kind()).into(),
        NetError::NoConnections => "no server can be asked".into(),
        NetError::Busy => "too much is asked".into(),
        NetError::Truncated => "the answer is cut short".into(),
        _ => "the answer is not understood".into(),
    })
}

fn of_code(code: ResponseCode) -> Cow<'static, str> {
    match code {
        ResponseCode::ServFail => "the server cannot find out (SERVFAIL)".into(),
        ResponseCode::Refused => "the server refuses to say (REFUSED)".into(),
        other => format!("the server answers with code {}", u16::from(other)).into(),
    }
}
