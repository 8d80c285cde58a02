# What `cmake --install` puts in place for libhla: library, headers, and files for find_package(hla) (target hla::hla) and for
# pkg-config. All of it is the component libhla, so that `cmake --install BUILD --component libhla` leaves the video engine out.
include(CMakePackageConfigHelpers)
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME libhla)

install(TARGETS hla EXPORT hla LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${HLA_ROOT}/include/hla DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

# Before 1.0 a new minor version may change the interface.
set(hla_package ${CMAKE_INSTALL_LIBDIR}/cmake/hla)
install(EXPORT hla NAMESPACE hla:: FILE hlaConfig.cmake DESTINATION ${hla_package})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/hlaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/hlaConfigVersion.cmake DESTINATION ${hla_package})

configure_file(${CMAKE_CURRENT_SOURCE_DIR}/hla.pc.in ${CMAKE_CURRENT_BINARY_DIR}/hla.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/hla.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# Manual pages of section 3: the overview is kept by hand, the pages of the functions are there once `make docs` ran.
install(FILES ${HLA_ROOT}/docs/man/libhla.3 DESTINATION ${CMAKE_INSTALL_MANDIR}/man3)
install(DIRECTORY ${HLA_ROOT}/build-docs/man/man3/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man3 OPTIONAL)
