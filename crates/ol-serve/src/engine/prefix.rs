//! Pages of keys and values that requests with the same beginning share.
//!
//! A tree by pages: a node is one full page, reached from its parent by the
//! sixteen token ids that the page holds. Nodes are found by comparing those ids
//! themselves, in a map keyed by `(parent, ids)`, so there is no digest whose
//! collision could hand one text's page to another. The first step, the root, is
//! keyed by the adapter's content hash and the [`Scope`]; base model and kernels
//! are those of the one engine that owns the tree, and a page holds the same
//! bits whoever computed it.
//!
//! Least recently used pages go first, and only from the ends of chains that no
//! running request uses.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ol_model::{KvPage, PAGE_TOKENS};
use ol_types::B256;

/// Among whom pages are shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Whoever begins alike.
    Everyone,
    /// The requests of one tenant.
    Tenant(Arc<str>),
}

/// Where the chains of an adapter begin.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Root {
    /// Content hash of the adapter; `None` for the base alone.
    pub(super) adapter: Option<B256>,
    pub(super) scope: Scope,
}

type NodeId = u64;
type PageTokens = [u32; PAGE_TOKENS];

#[derive(Debug)]
struct Node {
    parent: Option<(NodeId, PageTokens)>,
    /// `None` in a root.
    page: Option<KvPage>,
    root: Option<Root>,
    n_children: usize,
    /// Chains in use that go through here.
    n_users: usize,
    /// When the last of them ended.
    used_at: u64,
}

/// The pages of one request that are in the tree: all from the root on to some
/// node. Given back by [`PrefixCache::release`].
#[derive(Debug)]
#[must_use = "a chain is released, or its pages are never dropped"]
pub(super) struct Chain {
    tip: NodeId,
    n_pages: usize,
}

impl Chain {
    pub(super) const fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Whether the page that `tokens` need after this chain is the one that
    /// another request, with its chain and tokens, adds next.
    pub(super) fn is_followed_in(
        &self,
        tokens: &[u32],
        other: &Self,
        other_tokens: &[u32],
    ) -> bool {
        let from = self.n_pages * PAGE_TOKENS;
        let next = from..from + PAGE_TOKENS;
        // Not the page of the last token, which is computed anyway.
        next.end < tokens.len()
            && self.tip == other.tip
            && other_tokens.get(next.clone()) == Some(&tokens[next])
    }
}

/// The tree of shared pages.
#[derive(Debug)]
pub(super) struct PrefixCache {
    n_pages_max: usize,
    roots: HashMap<Root, NodeId>,
    children: HashMap<(NodeId, PageTokens), NodeId>,
    nodes: HashMap<NodeId, Node>,
    next_id: NodeId,
    /// Pages that no chain in use goes through.
    n_idle: usize,
    /// Those of them without children: `(used_at, id)`.
    leaves: BTreeSet<(u64, NodeId)>,
    tick: u64,
}

impl PrefixCache {
    /// A tree of at most so many pages; with none, nothing is ever shared.
    pub(super) fn new(n_pages_max: usize) -> Self {
        Self {
            n_pages_max,
            roots: HashMap::new(),
            children: HashMap::new(),
            nodes: HashMap::new(),
            next_id: 0,
            n_idle: 0,
            leaves: BTreeSet::new(),
            tick: 0,
        }
    }

    /// Pages held.
    pub(super) fn n_pages(&self) -> usize {
        self.nodes.len() - self.roots.len()
    }

    /// Pages held that could be dropped now.
    pub(super) const fn n_idle(&self) -> usize {
        self.n_idle
    }

    /// The longest chain that the tokens begin with, in use from now on, and its
    /// pages. The last token is never part of it: it has to be computed.
    pub(super) fn acquire(&mut self, root: &Root, tokens: &[u32]) -> (Chain, Vec<KvPage>) {
        let mut tip = self.root(root);
        let mut pages = Vec::new();
        self.use_node(tip);
        for ids in full_pages(&tokens[..tokens.len().saturating_sub(1)]) {
            let Some(&child) = self.children.get(&(tip, *ids)) else {
                break;
            };
            tip = child;
            self.use_node(tip);
            let page = self.nodes[&tip].page.clone();
            pages.push(page.expect("only a root has no page"));
        }
        let n_pages = pages.len();
        (Chain { tip, n_pages }, pages)
    }

    /// Makes the page that follows part of the chain, and returns it: the page
    /// given, or the one that was there already, to be used in its stead. `None`
    /// if there is no room.
    pub(super) fn extend(
        &mut self,
        chain: &mut Chain,
        ids: &[u32],
        page: KvPage,
    ) -> Option<KvPage> {
        let ids = *ids
            .as_array::<PAGE_TOKENS>()
            .expect("a full page holds its number of tokens");
        let key = (chain.tip, ids);
        let id = match self.children.get(&key) {
            Some(&id) => id,
            None => {
                if self.n_pages() >= self.n_pages_max && !self.evict() {
                    return None;
                }
                self.add(key, page)
            }
        };
        self.use_node(id);
        chain.tip = id;
        chain.n_pages += 1;
        self.nodes[&id].page.clone()
    }

    /// The chain is no longer in use.
    pub(super) fn release(&mut self, chain: Chain) {
        self.tick += 1;
        let now = self.tick;
        let mut at = Some(chain.tip);
        while let Some(id) = at {
            let node = self.node(id);
            node.n_users -= 1;
            at = node.parent.map(|(parent, _)| parent);
            let is_unused = node.n_users == 0;
            if is_unused {
                node.used_at = now;
                self.became_idle(id);
            }
        }
    }

    /// Drops the least recently used page that nobody uses and nothing follows.
    /// False if there is none.
    pub(super) fn evict(&mut self) -> bool {
        let Some((_, id)) = self.leaves.pop_first() else {
            return false;
        };
        self.n_idle -= 1;
        self.remove(id);
        true
    }

    fn root(&mut self, root: &Root) -> NodeId {
        if let Some(&id) = self.roots.get(root) {
            return id;
        }
        let id = self.insert(None, None, Some(root.clone()));
        self.roots.insert(root.clone(), id);
        id
    }

    fn add(&mut self, key: (NodeId, PageTokens), page: KvPage) -> NodeId {
        let id = self.insert(Some(key), Some(page), None);
        self.children.insert(key, id);
        self.node(key.0).n_children += 1;
        // Used at once, which takes it out again.
        self.n_idle += 1;
        id
    }

    fn insert(
        &mut self,
        parent: Option<(NodeId, PageTokens)>,
        page: Option<KvPage>,
        root: Option<Root>,
    ) -> NodeId {
        let id = self.next_id;
        // 64 bits do not come round; an id is never used again, so a chain that
        // ended cannot be taken for another.
        self.next_id += 1;
        let node = Node {
            parent,
            page,
            root,
            n_children: 0,
            n_users: 0,
            used_at: 0,
        };
        self.nodes.insert(id, node);
        id
    }

    fn use_node(&mut self, id: NodeId) {
        let node = self.node(id);
        node.n_users += 1;
        if node.n_users == 1 && node.page.is_some() {
            let place = (node.used_at, id);
            self.n_idle -= 1;
            self.leaves.remove(&place);
        }
    }

    /// No chain in use goes through the node any more.
    fn became_idle(&mut self, id: NodeId) {
        let node = self.node(id);
        let is_leaf = node.n_children == 0;
        if node.page.is_some() {
            let place = (node.used_at, id);
            self.n_idle += 1;
            if is_leaf {
                self.leaves.insert(place);
            }
        } else if is_leaf {
            self.remove(id);
        }
    }

    /// Takes out a node that has no children and no users.
    fn remove(&mut self, id: NodeId) {
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        if let Some(root) = node.root {
            self.roots.remove(&root);
        }
        let Some(key) = node.parent else {
            return;
        };
        self.children.remove(&key);
        let parent = self.node(key.0);
        parent.n_children -= 1;
        if parent.n_children == 0 && parent.n_users == 0 {
            let place = (parent.used_at, key.0);
            if parent.page.is_some() {
                self.leaves.insert(place);
            } else {
                self.remove(key.0);
            }
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes
            .get_mut(&id)
            .expect("a node lives while a chain or a child names it")
    }
}

/// The tokens of each full page, in order.
fn full_pages(tokens: &[u32]) -> impl Iterator<Item = &PageTokens> {
    tokens.as_chunks::<PAGE_TOKENS>().0.iter()
}

#[cfg(test)]
mod tests;
