"""Federations of real sites, over Flower's SuperLink.

* `provision`: `fedkd deploy init`: a folder for the server and each site.
* `authority`: certificates and keys.
* `templates`: start scripts and READMEs of that folder; `containers`: texts for Docker Compose;
  `kubernetes`: manifests.
* `targets`: the files of containers in that folder.
* `app`: the Flower App: its run config, its two apps.
* `serve`: a run on the server.
* `sites`: the sites on the server's side; messages to and from them.
* `patience`: how long the server waits for replies if the config sets no `timeout`.
* `roster`: the sites that have joined the federation.
* `introduction`: what a site reports about itself at the first contact.
* `agreeing`: lets sites agree on a codec before round 1; `site_codec`: a site's part in it.
* `on_site`: the code that runs at a site.
* `site_state`: a site's state on disk; `site_requests`: what it counts of its requests.
* `launch`: starts a SuperLink or a SuperNode, with its output as JSON.
* `exporter`: metrics for Prometheus, at the server and at sites.
"""
