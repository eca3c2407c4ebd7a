{{/* What the schema cannot say, or not as helpfully. Each rule is a template that says what is wrong and
     what to do, or nothing; every one of them is in the list below. */}}
{{- define "dgemma.validate" -}}
{{- $wrong := list -}}
{{- range list
  "image" "platform" "precision" "slots" "context" "stuck" "gpu" "replicas" "autoscaling" "autoscalingRange" "spread"
  "job" "jobStore" "readOnlyStore" "claim" "hostPath" "airGapped" "checkpoint" "filled" "revision"
  "memory" "tenants" "tenantsTwice" "tenantsUnused" "tls" "mtls" "gateway" "ingress"
  "baselinePlatform" "latest" "extraEnv" "extraVolumes" "podLabels" -}}
{{- with include (printf "dgemma.rule.%s" .) $ -}}
{{- $wrong = append $wrong . -}}
{{- end -}}
{{- end -}}
{{- with $wrong -}}
{{- fail (printf "\n\n- %s\n" (join "\n- " .)) -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.image" -}}
{{- if not .Values.image.repository -}}
image.repository: not set. Build the image and push it to a registry that the cluster reaches, then name it:
    docker buildx build --platform linux/amd64,linux/arm64 --push --tag REGISTRY/dgemma:{{ .Chart.AppVersion }} .
    helm … --set image.repository=REGISTRY/dgemma
  (for cpu-demo: docker build --target cpu --tag REGISTRY/dgemma:{{ .Chart.AppVersion }}-cpu . && docker push …)
{{- end -}}
{{- end }}

{{- define "dgemma.rule.platform" -}}
{{- if not .Values.platform.name -}}
platform: not set. Name a file of what the nodes are: -f helm/platforms/h100.yaml (h100-mig, dgx-spark, dgx-station, cpu-demo), or one of your own for another GPU
{{- end -}}
{{- end }}

{{- define "dgemma.rule.precision" -}}
{{- if and .Values.platform.name (not (has .Values.model.precision .Values.platform.precisions)) -}}
model.precision: {{ default "nothing" .Values.model.precision }} is no precision of {{ .Values.platform.name }}; choose one of {{ join ", " .Values.platform.precisions }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.slots" -}}
{{- $most := int .Values.platform.limits.slots -}}
{{- if and $most (gt (int .Values.serving.slots) $most) -}}
serving.slots: {{ int .Values.serving.slots }} are more than engines of {{ .Values.platform.name }} have rows for; at most {{ $most }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.context" -}}
{{- $most := int .Values.platform.limits.context -}}
{{- if and $most (gt (int .Values.serving.maxModelLen) $most) -}}
serving.maxModelLen: {{ int .Values.serving.maxModelLen }} tokens are more than engines of {{ .Values.platform.name }} take; at most {{ $most }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.stuck" -}}
{{- if le (float64 .Values.serving.stuckSeconds) (float64 .Values.serving.quietSeconds) -}}
serving.stuckSeconds: {{ .Values.serving.stuckSeconds }} is not above quietSeconds, {{ .Values.serving.quietSeconds }}: nothing would be given the time to recover
{{- end -}}
{{- end }}

{{- define "dgemma.rule.gpu" -}}
{{- if ne (empty .Values.platform.gpuResource) (eq 0 (int .Values.platform.gpuCount)) -}}
platform.gpuResource, platform.gpuCount: set both, as nvidia.com/gpu and 1, or neither, for CPUs
{{- end -}}
{{- end }}

{{- define "dgemma.rule.replicas" -}}
{{- if and .Values.autoscaling.enabled (not (kindIs "invalid" .Values.replicas)) -}}
replicas: {{ int .Values.replicas }} and autoscaling.enabled both say how many pods there are; leave replicas out (--set replicas=null), and set autoscaling.minReplicas
{{- end -}}
{{- end }}

{{- define "dgemma.rule.autoscaling" -}}
{{- if and .Values.autoscaling.enabled (eq .Values.rollout "recreate") -}}
autoscaling.enabled: rollout recreate is for a node whose GPU is taken, where no further pod fits; set rollout to in-place or surge if there are GPUs for {{ .Values.autoscaling.maxReplicas }} pods
{{- end -}}
{{- end }}

{{- define "dgemma.rule.autoscalingRange" -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
autoscaling.minReplicas: {{ .Values.autoscaling.minReplicas }} is above maxReplicas, {{ .Values.autoscaling.maxReplicas }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.spread" -}}
{{- $many := or (gt (int (include "dgemma.mostReplicas" .)) 1) (eq .Values.rollout "surge") -}}
{{- if and $many (eq .Values.store.mode "pvc") (eq .Values.store.accessMode "ReadWriteOnce") -}}
store.accessMode: ReadWriteOnce holds all pods on one node, and {{ if eq .Values.rollout "surge" }}a surge{{ else }}{{ include "dgemma.mostReplicas" . }} replicas{{ end }} may need another, and would wait for the volume for ever; use ReadWriteMany, or store.mode hostPath (a store on each node) or emptyDir (one in each pod)
{{- end -}}
{{- end }}

{{- define "dgemma.rule.job" -}}
{{- if and (eq .Values.engine.build "job") .Values.platform.gpuCount (ne .Values.rollout "surge") (not .Values.suspended) -}}
engine.build: the job needs a GPU beside those of the service's pods, and rollout {{ .Values.rollout }} says that none is free: they would wait for each other. Use engine.build init; or set suspended=true, wait for the job, and then suspended=false; or rollout surge, if a GPU is free
{{- end -}}
{{- end }}

{{- define "dgemma.rule.jobStore" -}}
{{- if and (eq .Values.engine.build "job") (eq .Values.store.mode "emptyDir") -}}
engine.build: what a job leaves in an emptyDir goes with its pod; use engine.build init, or a store that outlives a pod
{{- end -}}
{{- end }}

{{- define "dgemma.rule.readOnlyStore" -}}
{{- if and .Values.store.readOnly (ne .Values.engine.build "none") -}}
store.readOnly: nothing can be built into it; set engine.build=none, and fill the store beforehand
{{- end -}}
{{- end }}

{{- define "dgemma.rule.claim" -}}
{{- if ne (eq .Values.store.mode "existingClaim") (not (empty .Values.store.claim)) -}}
store.claim: goes with store.mode existingClaim, which needs the name of a claim in namespace {{ .Release.Namespace }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.hostPath" -}}
{{- if ne (eq .Values.store.mode "hostPath") (not (empty .Values.store.path)) -}}
store.path: goes with store.mode hostPath, which needs an absolute path of each node, writable for user {{ .Values.security.runAsUser }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.airGapped" -}}
{{- if and .Values.model.airGapped (hasPrefix "hf://" .Values.model.source) (not .Values.model.revision) (ne .Values.engine.build "none") -}}
model.airGapped: {{ .Values.model.source }} is on the hub; set model.source to a directory of model.volume (/models/…), or model.revision to the one that is in the store, or engine.build=none
{{- end -}}
{{- end }}

{{- define "dgemma.rule.checkpoint" -}}
{{- if and (hasPrefix "/models" .Values.model.source) (not .Values.model.volume) -}}
model.source: /models is where model.volume is mounted, and none is set; give one, such as model.volume.persistentVolumeClaim.claimName=NAME
{{- end -}}
{{- end }}

{{- define "dgemma.rule.filled" -}}
{{- if and (not .Values.model.source) (ne .Values.engine.build "none") -}}
model.source: empty means that the store is filled; set engine.build=none too, or name a checkpoint to build from
{{- end -}}
{{- end }}

{{- define "dgemma.rule.revision" -}}
{{- if and .Values.model.revision (not (hasPrefix "hf://" .Values.model.source)) -}}
model.revision: a commit of the hub, and model.source is {{ default "empty" .Values.model.source }}; leave it out, or set model.source to hf://ORG/NAME
{{- end -}}
{{- end }}

{{- define "dgemma.rule.memory" -}}
{{- with .Values.platform.unifiedMemory -}}
{{- $limit := trimSuffix "Gi" $.Values.resources.limits.memory | int -}}
{{- if and .totalGiB (gt $limit (sub .totalGiB .headRoomGiB | int)) -}}
resources.limits.memory: {{ $.Values.resources.limits.memory }} leaves less than {{ .headRoomGiB }} of {{ .totalGiB }} GiB for the system, and GPU and system share them: where they run out, the machine stands still; at most {{ sub .totalGiB .headRoomGiB }}Gi
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tenants" -}}
{{- if and (eq .Values.tenancy.mode "multi") (not .Values.tenancy.existingSecret) (not .Values.tenancy.tenants) -}}
tenancy: mode multi needs tenants: name a secret with a key tenants.yaml as tenancy.existingSecret, or list them as tenancy.tenants
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tenantsTwice" -}}
{{- if and .Values.tenancy.existingSecret (or .Values.tenancy.tenants .Values.tenancy.sharedPrefixes) -}}
tenancy: existingSecret {{ .Values.tenancy.existingSecret }} holds the tenants already; leave tenants and sharedPrefixes out, or existingSecret
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tenantsUnused" -}}
{{- with .Values.tenancy -}}
{{- if and (eq .mode "single") (or .existingSecret .tenants .sharedPrefixes $.Values.tests.apiKey.secret) -}}
tenancy.mode: single lets everybody in without a key, and tenants or an API key are set; use -f helm/tenancy/multi-tenant.yaml, or leave them out
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.tls" -}}
{{- if ne (eq .Values.tls.mode "disabled") (empty .Values.tls.secret) -}}
tls: mode tls or mtls and tls.secret, with tls.crt, tls.key and ca.crt, go together; mode is {{ .Values.tls.mode }}, the secret {{ default "not set" .Values.tls.secret }}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.mtls" -}}
{{- if ne (eq .Values.tls.mode "mtls") (not (empty .Values.tls.clientSecret)) -}}
tls.clientSecret: goes with tls.mode mtls, where Prometheus and `helm test` need a certificate too
{{- end -}}
{{- end }}

{{- define "dgemma.rule.gateway" -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
gateway.parentRefs: empty; name the Gateway that the routes belong to, as [{name: NAME, namespace: NAMESPACE}]
{{- end -}}
{{- end }}

{{- define "dgemma.rule.ingress" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
ingress.host: not set; name the host that clients ask
{{- end -}}
{{- end }}

{{- define "dgemma.rule.baselinePlatform" -}}
{{- with .Values.baseline -}}
{{- $engine := get . .engine -}}
{{- if and .enabled (not (has $.Values.platform.name $engine.platforms)) -}}
baseline.engine: {{ .engine }} ({{ $engine.image }}) is known to run {{ .model }} on {{ join ", " $engine.platforms }}, not on {{ $.Values.platform.name }}; choose another engine, or set baseline.{{ .engine }}.image and .platforms if you know better
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.latest" -}}
{{- range $value, $image := dict "image.tag" .Values.image.tag "baseline.vllm.image" .Values.baseline.vllm.image "baseline.trtllm.image" .Values.baseline.trtllm.image -}}
{{- if eq (splitList ":" $image | last) "latest" -}}
{{ $value }}: latest is another image tomorrow; name a version{{ "\n" }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.extraEnv" -}}
{{- $ours := list -}}
{{- range include "dgemma.serverEnv" . | fromYamlArray -}}{{- $ours = append $ours .name -}}{{- end -}}
{{- if .Values.model.hfToken.secret -}}{{- $ours = append $ours "HF_TOKEN" -}}{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name $ours -}}
extraEnv: {{ .name }} is set by the chart already; change the value that it comes from: see templates/_server.tpl and _pod.tpl
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.extraVolumes" -}}
{{- range .Values.extraVolumes -}}
{{- if has .name (list "store" "tmp" "shm" "models" "tenants" "ledger" "tls") -}}
extraVolumes: {{ .name }} is a volume of the chart's own; choose another name
{{- end -}}
{{- end -}}
{{- end }}

{{- define "dgemma.rule.podLabels" -}}
{{- range $label, $_ := .Values.podLabels -}}
{{- if hasKey (include "dgemma.selector" (list $ "") | fromYaml) $label -}}
podLabels: {{ $label }} is what the chart finds its pods by; leave it out
{{- end -}}
{{- end -}}
{{- end }}
