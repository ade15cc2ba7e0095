//! The control plane: registry, generations, state, watching and reload.
