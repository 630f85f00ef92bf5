//! `kakehictl`: the command line of a running kakehi.
fn main() {}
