{{/* (list CONTEXT NAME): a pod of `helm test`, which runs files/tests/NAME.py. */}}
{{- define "dgemma.test" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "dgemma.fullname" $ }}-test-{{ $name }}
  labels:
    {{- include "dgemma.labels" (list $ "test") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 300
  {{- include "dgemma.podCommon" (list $ false) | nindent 2 }}
  containers:
    - name: test
      image: {{ include "dgemma.image" $ }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      command: [python, /tests/{{ $name }}.py]
      env:
        - {name: TEST_HTTP, value: "{{ include "dgemma.scheme" $ }}://{{ include "dgemma.serverName" $ }}:8000"}
        - {name: TEST_GRPC, value: "{{ include "dgemma.serverName" $ }}:8001"}
        - {name: TEST_MODEL, value: {{ splitList "," $.Values.serving.names | first | trim | quote }}}
        - {name: TEST_PRECISION, value: {{ ternary $.Values.model.precision "" (empty $.Values.model.profile) | quote }}}
        {{- with $.Values.tests.apiKey }}
        {{- if .secret }}
        - name: TEST_API_KEY
          valueFrom:
            secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
        {{- end }}
        {{- end }}
        {{- if ne $.Values.tls.mode "disabled" }}
        - {name: TEST_CA, value: /etc/dgemma/tls/ca.crt}
        {{- end }}
        {{- if eq $.Values.tls.mode "mtls" }}
        - {name: TEST_CERT, value: /etc/dgemma/client/tls.crt}
        - {name: TEST_KEY, value: /etc/dgemma/client/tls.key}
        {{- end }}
      securityContext:
        {{- include "dgemma.containerSecurity" $ | nindent 8 }}
      resources:
        requests: {cpu: 100m, memory: 256Mi}
        limits: {memory: 512Mi}
      volumeMounts:
        - {name: tests, mountPath: /tests, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if ne $.Values.tls.mode "disabled" }}
        - {name: authorities, mountPath: /etc/dgemma/tls, readOnly: true}
        {{- end }}
        {{- if eq $.Values.tls.mode "mtls" }}
        - {name: client, mountPath: /etc/dgemma/client, readOnly: true}
        {{- end }}
  volumes:
    - name: tests
      configMap:
        name: {{ include "dgemma.fullname" $ }}-tests
    - name: tmp
      emptyDir: {}
    {{- if ne $.Values.tls.mode "disabled" }}
    - name: authorities
      secret:
        secretName: {{ $.Values.tls.secret }}
        items: [{key: ca.crt, path: ca.crt}]
    {{- end }}
    {{- if eq $.Values.tls.mode "mtls" }}
    - name: client
      secret:
        secretName: {{ $.Values.tls.clientSecret }}
    {{- end }}
{{- end }}

{{/* Whether `helm test` may ask for text. */}}
{{- define "dgemma.testMayAsk" -}}
{{- if or (eq .Values.tenancy.mode "single") .Values.tests.apiKey.secret }}yes{{ end }}
{{- end }}
