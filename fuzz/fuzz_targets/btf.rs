//! The kernel's own type information (BTF), which may come from an unknown kernel.
#![no_main]

use imds_observer::bpf::Btf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.offset("task_struct", "start_boottime");
        let _ = btf.offset("task_struct", "mm.exe_file");
        let _ = btf.size("sk_buff");
        let _ = btf.enumeration("skb_drop_reason");
        let _ = btf.parameters("btf_trace_kfree_skb");
    }
});
