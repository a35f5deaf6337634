//! Every instance of a service comes first equally often, and is there equally often where not all fit.

use std::collections::HashMap;

use crate::harness::{
    catalog::{CATALOG, plain},
    client::socket_for,
    message::TC,
    *,
};

/// Queries for each instance.
const TIMES: usize = 30;

#[test]
fn every_instance_comes_first_equally_often() {
    let unlimited = with_services("");
    let limited = with_services("udp_answer_limit = 2\nenable_truncate = true\n");
    for (daemon, instances, asked, size, given) in [
        (&unlimited, 3, "three.service.consul A", None, Given::All),
        (&unlimited, 3, "three.service.consul SRV", Some(4096), Given::All),
        (&limited, 3, "three.service.consul A", None, Given::Some),
        (&limited, 3, "three.service.consul SRV", None, Given::Some),
        (&unlimited, 10, "ten.service.consul A", Some(1232), Given::All),
        (&unlimited, 10, "ten.service.consul SRV", None, Given::Some),
        (&limited, 10, "ten.service.consul A", None, Given::Some),
        (&unlimited, 60, "sixty.service.consul A", Some(1232), Given::All),
        (&unlimited, 60, "sixty.service.consul A", None, Given::Some),
        (&unlimited, 60, "sixty.service.consul SRV", None, Given::Some),
    ] {
        let context = format!("{asked} with EDNS {size:?}");
        let (mut first, mut there) = (HashMap::<String, usize>::new(), HashMap::<String, usize>::new());
        // One client that does not close its socket between questions.
        let socket = socket_for(daemon.address());
        let mut buffer = [0; 16_384];
        for _ in 0..instances * TIMES {
            let query = size.map_or_else(|| query(asked), |size| query(asked).edns(size));
            socket.send(&query.to_wire()).unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            let reply = Message::from_wire(&buffer[..length]).unwrap();
            assert_eq!((reply.id, reply.has(TC)), (query.id, given == Given::Some), "{context}");
            assert_eq!(reply.answer.len() < instances, given == Given::Some, "{context}");
            let data = reply.data();
            *first.entry(data[0].clone()).or_default() += 1;
            data.into_iter().for_each(|data| *there.entry(data).or_default() += 1);
        }
        demand_even(&first, instances, &format!("{context}: first"));
        demand_even(&there, instances, &format!("{context}: there"));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    All,
    Some,
}

fn with_services(limits: &str) -> Daemon {
    let config = CATALOG.replace("[catalog.files]", &format!("{limits}[catalog.files]"));
    let files = [("three", 3), ("ten", 10), ("sixty", 60)];
    let with_file = |setup: Setup, (name, count)| setup.file(&format!("consul.d/{name}.json"), &plain(name, count));
    files.into_iter().fold(Setup::new(&config), with_file).start()
}

/// Pearson's test, with a bound that one good shuffle in thousand millions exceeds.
#[track_caller]
fn demand_even(counts: &HashMap<String, usize>, instances: usize, context: &str) {
    let total: usize = counts.values().sum();
    let expected = total as f64 / instances as f64;
    let absent = (instances - counts.len()) as f64 * expected;
    let statistic = counts.values().map(|&count| (count as f64 - expected).powi(2) / expected).sum::<f64>() + absent;
    let freedom = (instances - 1) as f64;
    let bound = freedom + 6.0 * (2.0 * freedom).sqrt() + 30.0;
    assert!(statistic < bound, "{context}: {statistic:.1} of {bound:.1} {counts:?}");
}
