"""The model of DeepSeek-V2: multi-head latent attention and DeepSeekMoE."""
