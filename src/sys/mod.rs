//! The system calls that the standard library lacks; the only room with unsafe code.

mod batch;
mod descriptors;
mod memory;
mod outbox;
mod pass;
mod poll;
mod socket;
mod user;

pub use batch::{Datagram, Inbox, Local};
pub use descriptors::{Use, descriptors_for, limit_open_files, open_files, open_files_limit};
pub use memory::release_memory;
pub use outbox::{Outbox, Sent};
pub use pass::{MOST_MESSAGE_BYTES, message_pair, receive_message, send_message, set_message_timeout};
pub use poll::{Poller, Waker};
pub use socket::{
    adopt_tcp, adopt_udp, bind_tcp, bind_udp, connect_udp, disconnect_udp, exhaustion, is_exhaustion, kernel_drops,
};
pub use user::User;
