//! Names for Machines that were given none. Pure: the caller draws the bits.

const ADJECTIVES: [&str; 32] = [
    "amber", "autumn", "bold", "brave", "bright", "calm", "clear", "coastal", "cold", "distant", "early", "far",
    "fleet", "gentle", "golden", "high", "keen", "late", "light", "long", "lucid", "misty", "nimble", "northern",
    "polar", "quiet", "silver", "steady", "swift", "tidal", "western", "wild",
];
const BIRDS: [&str; 32] = [
    "avocet", "bittern", "brant", "crane", "curlew", "dunlin", "egret", "eider", "fulmar", "gannet", "godwit", "grebe",
    "heron", "ibis", "knot", "loon", "martin", "merlin", "osprey", "petrel", "pipit", "plover", "puffin", "rail",
    "ruff", "shrike", "skua", "stilt", "swallow", "swift", "tern", "wren",
];

/// `calm-curlew-4821`.
pub fn draw(bits: u64) -> String {
    let adjective = ADJECTIVES[(bits % 32) as usize];
    let bird = BIRDS[(bits / 32 % 32) as usize];
    format!("{adjective}-{bird}-{:04}", bits / 1024 % 10_000)
}
