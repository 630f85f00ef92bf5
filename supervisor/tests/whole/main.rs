//! Whole-program tests: the real `kakehi` between clients and backends that are made of raw bytes.
//!
//! One file per promise; the name of a test is the sentence that it proves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod addresses;
mod allocations;
mod bad_backends;
mod balancing;
mod basics;
mod bodies;
mod certificates;
mod client_gone;
mod command_places;
mod draining;
mod drains;
mod duplex;
mod edits;
mod events;
mod facts;
mod failures;
mod files;
mod foreign_sockets;
mod framing;
mod freeze;
mod full_disk;
mod gateway;
mod greedy;
mod greedy_handshakes;
mod harness_itself;
mod headers;
mod health;
mod hostile_user;
mod hostile_worker;
mod identity;
mod init_system;
mod interim;
mod layers;
mod life;
mod limits;
mod lingering;
mod liveness;
mod names;
mod probes;
mod proxy_protocol;
mod queueing;
mod reload;
mod routing;
mod sandbox;
mod scale;
mod served;
mod settings;
mod shared_memory;
mod takeover;
mod tcp_listeners;
mod tls_backends;
mod tls_bodies;
mod tls_certificates;
mod tls_client_certificates;
mod tls_handshake;
mod tls_hostile;
mod tls_hosts;
mod tls_live_certificates;
mod tls_programs;
mod tls_tickets;
mod trials;
mod tunnels;
mod two_instances;
mod upgrade;
mod upstream_reuse;
mod usual_places;
mod verbs;
mod versions;
mod waiting;
mod waits;
