use imds_observer::{bpf::LiveOptions, source::*};
fn main() {
    tracing_subscriber::fmt().with_env_filter("debug").init();
    let mut a = std::env::args().skip(1);
    let cg = a.next().map(Into::into);
    let o = LiveOptions {
        interfaces: a.collect(),
        cgroup: cg,
        ..Default::default()
    };
    let mut s = LiveSource::open(&o).unwrap();
    println!("{:?}\n{:?}", s.kernel().attached(), s.kernel().missing());
    let mut v = vec![];
    loop {
        s.next_batch(std::time::Duration::from_millis(500), &mut v).unwrap();
        for e in v.drain(..) {
            println!("{e:?}");
        }
    }
}
