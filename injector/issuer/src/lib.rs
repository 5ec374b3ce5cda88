//! Issues certificates to workloads whose service account token the API server vouches for.
