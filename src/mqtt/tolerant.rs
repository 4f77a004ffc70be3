//! CONNECT as the `mqtt-proxy` plugin of APISIX reads it.
//!
//! The plugin skips the connect flags, the keep alive and, at level 5, the properties, and takes
//! the client id as it stands. The rest of the packet is read here too, as far as that goes,
//! because the idle timeout and the log want it; nothing in it can refuse the client.

use super::connect::Connect;
use super::cursor::Cursor;
use super::error::DecodeError;
use super::header::Header;
use super::properties::Properties;
use super::rules::{self, Version};
use super::strict::Flags;

/// Reads a packet that is wholly there.
pub(super) fn read<'a>(header: &Header<'a>) -> Result<Connect<'a>, DecodeError> {
    let Header { judged, .. } = *header;
    let mut body = header.body;
    let mut connect = header.connect();

    let cut_short = |at| rules::VARIABLE_HEADER.broken(judged, at);
    let flags = Flags(body.byte().ok_or_else(|| cut_short(body.at()))?);
    connect.keep_alive = body.two().ok_or_else(|| cut_short(body.at()))?;
    connect.clean_start = flags.clean_start();
    connect.has_will = flags.will();
    connect.has_password = flags.password();

    if judged.version == Version::V5 {
        let at = body.at();
        connect.properties =
            section(&mut body).ok_or_else(|| rules::PROPERTIES_CUT_SHORT.broken(judged, at))?;
        for item in Properties::new(connect.properties, 0).map_while(Result::ok) {
            connect.note(&item);
        }
    }
    let at = body.at();
    connect.client_id = body
        .counted()
        .ok_or_else(|| rules::CLIENT_ID.cut_short.broken(judged, at))?;
    connect.username = username(body, flags, judged.version);
    Ok(connect)
}

/// Bytes behind a Variable Byte Integer that counts them, however it is written.
fn section<'a>(body: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let len = body.varint()?.value;
    body.take(usize::try_from(len).ok()?)
}

fn username<'a>(mut body: Cursor<'a>, flags: Flags, version: Version) -> Option<&'a [u8]> {
    if !flags.username() {
        return None;
    }
    if flags.will() {
        if version == Version::V5 {
            section(&mut body)?;
        }
        body.counted()?;
        body.counted()?;
    }
    body.counted()
}
