//! What a peer can make us allocate. One test, so that nothing else allocates meanwhile.

mod util;

use std::io::Write;

use bytes::Bytes;
use peak_alloc::PeakAlloc;
use ucrpc_rpc::codec::{CompressType, DecompressError};
use ucrpc_rpc::wire::{Limits, RpcMeta, parse};
use util::hex;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that `f` had allocated at most, beyond what was allocated before.
fn peak<R>(f: impl FnOnce() -> R) -> (R, usize) {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = f();
    (result, ALLOCATOR.peak_usage() - before)
}

#[test]
fn nothing_is_allocated_above_the_limits() {
    const LIMIT: usize = 1 << 18;
    // What inflating needs for itself.
    const STATE: usize = 128 << 10;
    let zeros = vec![0; 4 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(&zeros).unwrap();
    let lz4_block = lz4_flex::block::compress(&zeros);
    let mut lz4 = hex("8080 8002");
    lz4.extend(&lz4_block);
    let bombs = [
        (CompressType::None, zeros.clone()),
        (CompressType::Snappy, snap::raw::Encoder::new().compress_vec(&zeros).unwrap()),
        (CompressType::Gzip, gzip.finish().unwrap()),
        (CompressType::Zlib, zlib.finish().unwrap()),
        (CompressType::Lz4, lz4),
    ];
    for (how, bomb) in bombs {
        let bomb = Bytes::from(bomb);
        let (result, peak) = peak(|| how.decompress(bomb.clone(), LIMIT));
        assert!(matches!(result, Err(DecompressError::TooLong { limit: LIMIT })), "{how:?}: {result:?}");
        // A buffer that grows is there twice for a moment, once half as long.
        assert!(peak <= LIMIT + LIMIT / 2 + STATE, "{how:?} took {peak} bytes");
        // With the room it needs, it is no bomb.
        assert_eq!(how.decompress(bomb.clone(), zeros.len()).unwrap(), zeros, "{how:?}");
        assert!(how.decompress(bomb, zeros.len() - 1).is_err(), "{how:?}");
    }

    // Claims that no data stands behind, below the limit: refused by the ratio, before memory is taken.
    for (how, claim) in [(CompressType::Snappy, "ffff 0f 00 00"), (CompressType::Lz4, "ffff 0f 00 00")] {
        let claim = Bytes::from(hex(claim));
        let (result, peak) = peak(|| how.decompress(claim, LIMIT));
        assert!(matches!(result, Err(DecompressError::Corrupt(_))), "{how:?}: {result:?}");
        assert!(peak < 1000, "{how:?} took {peak} bytes");
    }
    // Cut off, with something behind, not of the format at all.
    for how in [CompressType::Snappy, CompressType::Gzip, CompressType::Zlib, CompressType::Lz4] {
        let whole = how.compress(ucrpc_rpc::wire::MessageBuf::copy_from_slice(&[7; 5000], 0), 0).unwrap().freeze();
        let cut = whole.slice(..whole.len() - 1);
        let longer = Bytes::from([&whole[..], b"x"].concat());
        assert_eq!(how.decompress(whole, LIMIT).unwrap(), vec![7; 5000]);
        for bad in [cut, longer, Bytes::new(), Bytes::from_static(b"no compressed data")] {
            assert!(how.decompress(bad.clone(), LIMIT).is_err(), "{how:?} took {bad:?}");
        }
    }

    // Frames: claims of 4 GiB, metas full of entries. Looking at them allocates nothing.
    let entries = "4a06 0a01 'k' 1201 'v'".repeat(128);
    let meta = hex(&format!("{entries} 0a 08 0a01 's' 1201 'm' 1801"));
    let header = [meta.len() as u32 + (32 << 20), meta.len() as u32].map(u32::to_be_bytes).concat();
    let frame = [b"PRPC", &header[..], &meta].concat();
    let (result, allocated) = peak(|| parse(&frame, &Limits::DEFAULT).is_ok());
    assert!(result && allocated == 0, "{allocated} bytes for a frame's head");
    let claim = hex("'PRPC' ffffffff ffffffff");
    let (result, allocated) = peak(|| parse(&claim, &Limits::DEFAULT).is_err());
    assert!(result && allocated == 0, "{allocated} bytes for a claim");
    let ids = hex(&format!("08 01 {}", "2001".repeat(5000)));
    let meta = [&hex("42 9a4e 08 01")[..], &ids[2..]].concat();
    let (result, allocated) = peak(|| RpcMeta::decode(&meta, &Limits::DEFAULT).is_err());
    assert!(result && allocated < 2000, "{allocated} bytes for stream ids");
}
