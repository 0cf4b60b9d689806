"""What TensorBoard shows: the sink that writes it, and the plugin of the *Gradient flow* tab.

Nothing is imported here: TensorBoard itself imports this package when it starts, and must not wait for torch.
"""
