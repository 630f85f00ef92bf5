//! Whole-program tests: the real `kakehi` between clients and backends that are made of raw bytes.
//!
//! One file per promise; the name of a test is the sentence that it proves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../harness/mod.rs"]
mod harness;

mod harness_itself;
