//! Placeholder until its builder arrives.
