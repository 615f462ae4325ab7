"""What a user can do with runs, as plain functions on the store and the cluster. They know no HTTP.

Every function takes a `Context` first, is safe to call from any thread, and raises the errors of
`controlplane.domain.errors` or, where it asks the cluster, `controlplane.clusters.base.ClusterError`.
"""
