//! What the plan says of the translation between inside and outside.
