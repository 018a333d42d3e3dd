//! Clock, object store and other things that come from outside, passed in.
