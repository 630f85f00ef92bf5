//! What comes out of answers, whatever is in them.
