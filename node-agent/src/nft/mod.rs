//! Services in nf_tables.
//!
//! ```text
//! World ─▶ desired ─▶ plan(key, desired, mirror) ─▶ Step… ─▶ kernel (one atomic commit)
//!                        ▲                            │
//!                        └──────── mirror ◀───────────┘  read back at start and on doubt
//! ```

pub mod affinity;
pub mod affinity_plan;
pub mod affinity_rules;
pub mod claims;
pub mod compile;
pub mod decompile;
pub mod denial;
pub mod desired;
pub mod evaluate;
pub mod fake;
pub mod groups;
pub mod kernel;
pub mod layout;
pub mod mirror;
pub mod note;
pub mod others;
pub mod plan;
pub mod probe;
pub mod reading;
pub mod ruleset;
pub mod source_ranges;
pub mod step;
pub mod stranded;
