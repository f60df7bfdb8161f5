//! The demo's folder: a shop, the config, and what is said about them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use headwater_connect::settings::Outbox;
use headwater_connect::sqlite;
use headwater_core::{Kind, Result, ResultExt};

use super::shop::Shop;
use crate::output::{self, Colour, paint};

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder.
    pub dir: PathBuf,
    /// The shop's database.
    pub shop: PathBuf,
    /// The config.
    pub config: PathBuf,
    /// Whether an earlier demo left it.
    pub known: bool,
}

impl Place {
    /// Makes what is missing: the folder, the shop, its triggers and outbox, the config. Blocks.
    pub fn prepare(dir: &Path) -> Result<(Self, Shop)> {
        let doing = || format!("preparing the demo in {}", dir.display());
        std::fs::create_dir_all(dir).doing(Kind::Config, doing)?;
        let (shop, config) = (dir.join("shop.db"), dir.join("headwater.toml"));
        let place = Self { dir: dir.to_owned(), known: shop.exists(), shop, config };
        let opened = Shop::open(&place.shop)?;
        // The same that `headwater init sqlite://...` does.
        let tables = ["customers", "orders", "order_lines"].map(str::to_owned);
        sqlite::install(&place.shop, &tables, Some(&Outbox::new("outbox")))?;
        let text = include_str!("headwater.toml").replace("LISTEN", &free_address());
        std::fs::write(&place.config, text).doing(Kind::Config, doing)?;
        Ok((place, opened))
    }

    /// Says what is where, and what to try.
    pub fn introduce(&self, address: Option<std::net::SocketAddr>) -> Result<()> {
        let colour = output::coloured();
        let bold = |text: &str| paint(text, Colour::Bold, colour);
        let name = |text: &str| paint(text, Colour::Cyan, colour);
        let program = std::env::args().next().unwrap_or_else(|| "headwater".into());
        let (dir, shop, config) = (self.dir.display(), self.shop.display(), self.config.display());
        output::line(bold(
            "A small shop on SQLite, and every change of it on its way to a consumer, in one process",
        ))?;
        output::line("")?;
        output::line(format!(
            "  the shop     {}  customers, orders, order_lines and an outbox",
            name(&shop.to_string())
        ))?;
        output::line(format!(
            "  the bus      {}  streams of events, and how far each group has read",
            name(&format!("{dir}/bus"))
        ))?;
        output::line(format!("  the config   {}  what runs here", name(&config.to_string())))?;
        if let Some(address) = address {
            output::line(format!(
                "  HTTP         {}  and /metrics, /healthz, /readyz",
                name(&format!("http://{address}/status"))
            ))?;
        }
        output::line("")?;
        output::line(bold("Try from a second terminal"))?;
        let change = "update customers set email = 'me@example.com' where id = 1";
        output::line(format!("  sqlite3 -cmd '.timeout 5000' {shop} \"{change}\""))?;
        output::line(format!("  {program} tail orders --config {config} --from beginning"))?;
        output::line(format!("  {program} status {config}"))?;
        output::line("")?;
        let again = if self.known { "It goes on where it was. " } else { "" };
        output::line(format!("{again}Ctrl-C ends it and compares what arrived with the shop."))?;
        output::line("")?;
        let heading = format!(
            "{:<12}  {:<12}  {:<14}  {:<8}  {:>9}  says",
            "committed", "stream", "event", "key", "took"
        );
        output::line(paint(&heading.to_uppercase(), Colour::Dim, colour))
    }
}

/// A port of its own, so that a demo gets in nobody's way.
fn free_address() -> String {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    address.map_or_else(|_| "off".to_owned(), |address| address.to_string())
}
