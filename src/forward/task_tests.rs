use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    super::testing::{Reply, group},
    *,
};
use crate::wire::{Rcode, flag};

fn begin(group: &Arc<Group>, patience: Option<Duration>) -> Exchange {
    let question = Question { qname: "www.example.org".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
    let options =
        Options { dnssec_ok: false, checking_disabled: false, patience, timeout: Duration::from_millis(3500) };
    Exchange::new(Arc::clone(group), &question, options, Moment::now(), &mut rand::rng())
}

async fn answer_once(socket: &UdpSocket, reply: impl FnOnce(&[u8]) -> Reply) {
    let mut buffer = [0; 1500];
    let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
    socket.send_to(&reply(&buffer[..length]).wire(), client).await.unwrap();
}

async fn listen() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn a_truncated_response_is_fetched_whole_by_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let group = group(&format!("upstreams = ['{address}']"));
    let over_tcp = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut query).await.unwrap();
        let reply = Reply::answering(&query).wire();
        stream.write_u16(reply.len() as u16).await.unwrap();
        stream.write_all(&reply).await.unwrap();
        stream
    };
    let by_udp = answer_once(&socket, |query| Reply::to(query).flag(flag::TC));
    let (outcome, (), _) = tokio::join!(run(begin(&group, None), || ()), by_udp, over_tcp);
    let response = outcome.response.unwrap();
    assert_eq!((response.rcode(), response.counts()), (Rcode::NOERROR, [1, 0, 0]));
}

#[tokio::test]
async fn a_closed_port_sends_the_query_on_at_once() {
    let (closed, closed_address) = listen().await;
    drop(closed);
    let (socket, address) = listen().await;
    let group = group(&format!("upstreams = ['{closed_address}', 'tcp://{closed_address}', '{address}']"));
    let (outcome, ()) = tokio::join!(run(begin(&group, None), || ()), answer_once(&socket, Reply::answering));
    assert!(Arc::ptr_eq(&outcome.upstream.unwrap(), &group.upstreams()[2]));
}

#[tokio::test]
async fn patience_ends_while_the_exchange_goes_on() {
    let (socket, address) = listen().await;
    let group = group(&format!("upstreams = ['{address}']"));
    let (out_of_patience, mut is_out_of_patience) = mpsc::unbounded_channel();
    let exchange = begin(&group, Some(Duration::from_millis(1)));
    let outcome = run(exchange, move || out_of_patience.send(()).unwrap());
    let server = async {
        is_out_of_patience.recv().await.unwrap();
        answer_once(&socket, Reply::answering).await;
    };
    assert!(tokio::join!(outcome, server).0.response.is_ok());
}

#[tokio::test]
async fn a_probe_that_is_answered_makes_the_upstream_up() {
    for rcode in [Rcode::NOERROR, Rcode::REFUSED] {
        let (socket, address) = listen().await;
        let upstream = Arc::clone(&group(&format!("upstreams = ['{address}']")).upstreams()[0]);
        (0..3).for_each(|_| upstream.note_refused(&"port closed", Moment::now()));
        assert!(!upstream.is_up());
        tokio::join!(probe(Arc::clone(&upstream)), answer_once(&socket, |query| Reply::to(query).rcode(rcode)));
        assert!(upstream.is_up(), "{rcode}");
    }
}
