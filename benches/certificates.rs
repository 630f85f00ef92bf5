//! `cargo bench -p kakehi-benches --bench certificates`: what very many certificates cost.
//!
//! A file with 50,000 frontends, each with a certificate and key of its own, all from one intermediate that they are sent
//! with, against the same file with one certificate for all: time from the start to the first answer over TLS, and memory
//! of all processes and of what they share without mapping it. With one worker and with two. The exit code is 0 only if
//! the limits are kept.
//!
//! Certificates (P-256, from an issuer with P-384) have two names and the extensions that public authorities put into
//! theirs, with as many bytes in them that no other has: about 1 KiB each.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use kakehi_benches::accounting::{pss_kib, tree};
use kakehi_benches::backend::Backend;
use kakehi_benches::cores::Cores;
use kakehi_benches::folders::Folders;
use kakehi_benches::generator::HOST;
use kakehi_benches::generator::tls::{Tickets, Tls};
use kakehi_benches::identity::Identity;
use kakehi_benches::process::{Process, Program, free_address, pause};
use kakehi_benches::{Attempt, BenchError, benchmark};
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
};

/// Measures what very many certificates cost.
#[derive(Debug, Parser)]
struct Options {
    /// How many
    #[arg(long, default_value_t = 50_000)]
    count: usize,
    /// As short as they can be, instead of as long as those of public authorities
    #[arg(long)]
    short: bool,
    /// A few, for a short time: shows that it works
    #[arg(long, alias = "test")]
    quick: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Limits for 50,000 certificates.
const START: Duration = Duration::from_secs(5);
const MEMORY_KIB: u64 = 100 * 1024;
/// What was needed at the start only has been given back by then, and what nobody uses is erased.
const SETTLED: Duration = Duration::from_secs(20);

/// What was measured of one configuration.
struct Cost {
    start: Duration,
    processes_kib: u64,
    vault_kib: u64,
}

impl Cost {
    fn memory_kib(&self) -> u64 {
        self.processes_kib + self.vault_kib
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    benchmark(options.bench || options.quick, || run(&options))
}

fn run(options: &Options) -> Result<bool, BenchError> {
    let (count, settled) =
        if options.quick { (200, Duration::from_millis(100)) } else { (options.count, SETTLED) };
    let program = Folders::find()?.kakehi()?;
    let cores = Cores::choose(std::env::var("KAKEHI_BENCH_CORES").ok().as_deref())?;
    let backend = Backend::start(cores.backend)?;
    let folder = tempfile::tempdir().attempt(|| "no temporary folder".into())?;
    let identity = Identity::generate()?;
    eprintln!("making {count} certificates");
    let length = issue(folder.path(), count, options.short)?;
    println!("certificates of {length} bytes:");
    let stage = Stage { program: &program, core: cores.proxy, backend: backend.address(), identity, settled };
    println!(
        "| workers | start s | limit | memory MiB | of it vault | with one certificate | cost MiB | limit |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut kept = true;
    for workers in [1, 2] {
        let one = stage.measure(folder.path(), workers, |_| 0, count)?;
        let all = stage.measure(folder.path(), workers, |n| n, count)?;
        let cost = all.memory_kib().saturating_sub(one.memory_kib());
        println!(
            "| {workers} | {:.2} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
            all.start.as_secs_f64(),
            START.as_secs(),
            mib(all.memory_kib()),
            mib(all.vault_kib),
            mib(one.memory_kib()),
            mib(cost),
            mib(MEMORY_KIB),
        );
        kept &= all.start <= START && cost <= MEMORY_KIB;
    }
    Ok(kept)
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Bytes that are the same in each run, and that no compression makes shorter (xorshift64*).
struct Noise(u64);

impl Noise {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        [(); N].map(|()| {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
        })
    }
}

/// Log entries of Certificate Transparency (RFC 6962): the same two logs each time, but not what they have signed.
fn log_entries(noise: &mut Noise) -> CustomExtension {
    let mut list = Vec::new();
    for log in [0x41, 0xc3] {
        let (time, signature) = (noise.bytes::<5>(), noise.bytes::<70>());
        let entry = [&[0][..], &[log; 32], &[0, 0, 1], &time, &[0, 0, 4, 3, 0, 70], &signature].concat();
        list.extend_from_slice(&(entry.len() as u16).to_be_bytes());
        list.extend_from_slice(&entry);
    }
    let list = [&(list.len() as u16).to_be_bytes()[..], &list].concat();
    // An octet string within that of the extension.
    let content = [&[0x04, 0x81, list.len() as u8][..], &list].concat();
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2], content)
}

/// An extension that is the same in all: policies, or where the issuer is found.
fn fixed(oid: &[u64], length: usize) -> CustomExtension {
    CustomExtension::from_oid_content(oid, (0..length).map(|n| (n * 7) as u8).collect())
}

/// What a certificate for a host has in it.
fn leaf(n: usize, short: bool, noise: &mut Noise) -> Result<CertificateParams, rcgen::Error> {
    let name = format!("host-{n}.example");
    if short {
        return CertificateParams::new([name]);
    }
    let mut leaf = CertificateParams::new([name.clone(), format!("www.{name}")])?;
    leaf.distinguished_name.push(DnType::CommonName, name);
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.use_authority_key_identifier_extension = true;
    leaf.crl_distribution_points =
        vec![CrlDistributionPoint { uris: vec!["http://crl.authority.example/number/63.crl".to_owned()] }];
    leaf.custom_extensions =
        vec![fixed(&[1, 3, 6, 1, 5, 5, 7, 1, 1], 60), fixed(&[2, 5, 29, 32], 21), log_entries(noise)];
    Ok(leaf)
}

/// Writes `N.pem`, a certificate for `host-N.example` with its intermediate, and `N.key`. Says how long one is (bytes).
fn issue(folder: &Path, count: usize, short: bool) -> Result<usize, BenchError> {
    let wrong = |error: rcgen::Error| BenchError::Tls(format!("cannot make a certificate: {error}"));
    let write = |name: String, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).attempt(|| format!("cannot write {}", path.display()))
    };
    let mut parameters = CertificateParams::new(Vec::new()).map_err(wrong)?;
    parameters.distinguished_name.push(DnType::CountryName, "JP");
    parameters.distinguished_name.push(DnType::OrganizationName, "An authority");
    parameters.distinguished_name.push(DnType::CommonName, "An intermediate of it");
    // About as long as those of the authorities of the web.
    parameters.custom_extensions.push(fixed(&[1, 3, 6, 1, 4, 1, 311, 99, 1], 700));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).map_err(wrong)?;
    let intermediate = parameters.self_signed(&key).map_err(wrong)?.pem();
    let issuer = Issuer::new(parameters, key);
    let mut noise = Noise(1);
    let mut length = 0;
    for n in 0..count {
        let key = KeyPair::generate().map_err(wrong)?;
        let leaf = leaf(n, short, &mut noise).map_err(wrong)?;
        let leaf = leaf.signed_by(&key, &issuer).map_err(wrong)?;
        length = leaf.der().len();
        write(format!("{n}.pem"), leaf.pem() + &intermediate)?;
        write(format!("{n}.key"), key.serialize_pem())?;
    }
    Ok(length)
}

/// What is the same in all measurements.
struct Stage<'a> {
    program: &'a Path,
    core: usize,
    backend: SocketAddr,
    identity: Identity,
    settled: Duration,
}

impl Stage<'_> {
    /// Starts with `count` frontends, of which the N-th has certificate `which(N)`.
    fn measure(
        &self,
        folder: &Path,
        workers: usize,
        which: impl Fn(usize) -> usize,
        count: usize,
    ) -> Result<Cost, BenchError> {
        let listen = free_address()?;
        let files = self.identity.write(folder)?;
        let mut text = format!(
            "command_socket = \"./k.sock\"\nworker_count = {workers}\nmax_connections = 1000\n\
             [[listeners]]\naddress = \"{listen}\"\nprotocol = \"https\"\n\
             certificate = \"{}\"\nkey = \"{}\"\n\
             [clusters.all]\nprotocol = \"http\"\nbackends = [{{ address = \"{}\" }}]\nfrontends = [\n\
             {{ address = \"{listen}\", hostname = \"{HOST}\" }},\n",
            files.certificate.display(),
            files.key.display(),
            self.backend,
        );
        for n in 0..count {
            let certificate = which(n);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{{ address = \"{listen}\", hostname = \"host-{n}.example\", certificate = \"{certificate}.pem\", key = \"{certificate}.key\" }},"
            );
        }
        text.push_str("]\n");
        let path = folder.join("kakehi.toml");
        fs::write(&path, text).attempt(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(self.program);
        command.args(["start", "-c"]).arg(&path);
        let tls = Some(Tls::new(self.identity.certificate().clone(), Tickets::Ignore)?);
        let program = Program { name: "kakehi".into(), command, listen, tls, log: folder.join("log") };
        let mut process = Process::start(program, self.core)?;
        let start = process.wait_until_ready()?;
        pause(self.settled);
        let (processes_kib, vault_kib) = (pss_kib(process.id())?, vault_kib(process.id())?);
        Ok(Cost { start, processes_kib, vault_kib })
    }
}

/// Memory of the vault (KiB), which the processes share without mapping it.
fn vault_kib(root: u32) -> Result<u64, BenchError> {
    for pid in tree(root)? {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let name = fs::read_link(descriptor.path()).unwrap_or_default();
            if name.to_string_lossy().contains("kakehi-vault")
                && let Ok(vault) = fs::metadata(descriptor.path())
            {
                return Ok(vault.blocks() / 2);
            }
        }
    }
    Err(BenchError::Program("kakehi has no vault".into()))
}
