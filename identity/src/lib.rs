//! Who a workload is, and how peers prove it to each other.
