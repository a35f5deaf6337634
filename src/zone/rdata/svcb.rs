//! SVCB and HTTPS records (RFC 9460 §2.1), read by the crate `domain` as a zone of one record.

use domain::{
    base::{
        ParsedName,
        rdata::{ComposeRecordData, ParseRecordData},
    },
    dep::octseq::Parser,
    rdata::ZoneRecordData,
    zonefile::inplace,
};

use super::{Fault, bad};
use crate::wire::{Name, Rtype};

pub(super) fn read(rtype: Rtype, words: &[&str], origin: &Name, out: &mut Vec<u8>) -> Result<(), Fault> {
    let start = out.len();
    let absolute = origin.to_string();
    // The crate takes `@` for a label.
    let words: Vec<&str> = words.iter().map(|&word| if word == "@" { &absolute } else { word }).collect();
    let text = format!("$ORIGIN {absolute}\n. 0 CLASS1 TYPE{} {}\n", rtype.0, words.join(" "));
    match inplace::Zonefile::from(text.as_str()).next_entry() {
        Ok(Some(inplace::Entry::Record(record))) => {
            let Ok(()) = record.data().compose_rdata(out);
        }
        Ok(_) => return Err(bad("it is not a record")),
        // Its message begins with line and column in a text that the operator never sees.
        Err(error) => return Err(bad(error.to_string().splitn(3, ':').last().unwrap_or_default().trim())),
    }
    // It lets empty labels pass.
    if is_good(rtype, &out[start..]) { Ok(()) } else { Err(bad("a name or parameter in it is malformed")) }
}

pub(super) fn is_good(rtype: Rtype, rdata: &[u8]) -> bool {
    let mut parser = Parser::from_ref(rdata);
    let read = ZoneRecordData::<&[u8], ParsedName<&[u8]>>::parse_rdata(rtype.0.into(), &mut parser);
    read.is_ok() && parser.remaining() == 0
}
